# A room is a folder of src/ and one static library, manta_<room>. Its sources are the .cc files in it (and in the
# leaf folders named by LEAVES); what it may use is what it links. tools/check_arrows.py holds the #include lines
# against the same list in src/README.md.
#   manta_room(NAME [DEPS room...] [LIBS external targets...] [LEAVES sub-folders...])
function(manta_room name)
  cmake_parse_arguments(ARG "" "" "DEPS;LIBS;LEAVES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS *.cc)
  foreach(leaf ${ARG_LEAVES})
    file(GLOB leaf_sources CONFIGURE_DEPENDS ${leaf}/*.cc)
    list(APPEND sources ${leaf_sources})
  endforeach()
  list(TRANSFORM ARG_DEPS PREPEND manta_)
  if(sources)
    add_library(manta_${name} STATIC ${sources})
    target_include_directories(manta_${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(manta_${name} PUBLIC ${ARG_DEPS} ${ARG_LIBS})
  else()
    add_library(manta_${name} INTERFACE)
    target_include_directories(manta_${name} INTERFACE ${CMAKE_SOURCE_DIR}/src)
    target_link_libraries(manta_${name} INTERFACE ${ARG_DEPS} ${ARG_LIBS})
  endif()
endfunction()

# One GoogleTest binary per room: tests/<room>/*_test.cc -> manta_<room>_test, run by ctest from the source root, so
# that tests read models/ and tests/golden/ by relative path.
function(manta_room_test name)
  cmake_parse_arguments(ARG "" "" "DEPS;LIBS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${name}/*_test.cc)
  list(TRANSFORM ARG_DEPS PREPEND manta_)
  add_executable(manta_${name}_test ${sources})
  target_link_libraries(manta_${name}_test PRIVATE manta_${name} ${ARG_DEPS} ${ARG_LIBS} GTest::gtest_main GTest::gmock)
  add_test(NAME ${name} COMMAND manta_${name}_test WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
endfunction()

# A libFuzzer target: tests/fuzz/<name>_fuzz.cc with its corpus in tests/fuzz/corpus/<name>/. Without MANTA_FUZZ the
# same source is linked with a replay main, so that ./dev test runs every corpus file.
function(manta_fuzz name)
  cmake_parse_arguments(ARG "" "" "DEPS;LIBS" ${ARGN})
  list(TRANSFORM ARG_DEPS PREPEND manta_)
  if(MANTA_FUZZ)
    add_executable(${name}_fuzz ${CMAKE_SOURCE_DIR}/tests/fuzz/${name}_fuzz.cc)
    target_link_options(${name}_fuzz PRIVATE -fsanitize=fuzzer)
  else()
    add_executable(${name}_fuzz ${CMAKE_SOURCE_DIR}/tests/fuzz/${name}_fuzz.cc ${CMAKE_SOURCE_DIR}/tests/fuzz/replay_main.cc)
    add_test(NAME fuzz_${name} COMMAND ${name}_fuzz tests/fuzz/corpus/${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  endif()
  target_link_libraries(${name}_fuzz PRIVATE ${ARG_DEPS} ${ARG_LIBS})
endfunction()
