# The libraries that do not come from apt, as targets. ./dev deps unpacks and builds them in MANTA_DEPS_DIR:
#   manta_dep_jinja     the Jinja engine of llama.cpp: #include "jinja/parser.h", "jinja/runtime.h", "json.h"
#   manta_dep_xgrammar  structured output: #include <xgrammar/xgrammar.h>, <dlpack/dlpack.h>
find_package(nlohmann_json REQUIRED)

foreach(needed jinja/jinja/parser.h xgrammar/include/xgrammar/xgrammar.h xgrammar-build/libxgrammar.a)
  if(NOT EXISTS ${MANTA_DEPS_DIR}/${needed})
    message(FATAL_ERROR "${MANTA_DEPS_DIR}/${needed} is missing: run ./dev deps first")
  endif()
endforeach()

# Compiled with our own flags, so that the sanitizer lanes see into it: chat templates are user input of a kind. Its json.cpp wants
# two assertion macros of ggml.h and nothing else of ggml. The include folder is the parent of jinja/, never jinja/ itself: that
# one holds a string.h.
set(jinja ${MANTA_DEPS_DIR}/jinja)
file(WRITE ${CMAKE_BINARY_DIR}/dep_jinja/ggml.h.new "#pragma once
#include <cstdlib>
#define GGML_ASSERT(x) do { if (!(x)) abort(); } while (0)
#define GGML_ABORT(...) abort()
")
file(COPY_FILE ${CMAKE_BINARY_DIR}/dep_jinja/ggml.h.new ${CMAKE_BINARY_DIR}/dep_jinja/ggml.h ONLY_IF_DIFFERENT)
# Its interpreter copies the whole table of builtins at every name, and all variables at every loop item even where the loop filters
# nothing: half of the time of a render. Mended in a copy, whose quoted includes are the original's neighbours.
file(READ ${jinja}/jinja/runtime.cpp jinja_runtime)
string(REPLACE "auto builtins = " "const auto & builtins = " jinja_runtime "${jinja_runtime}")
string(REPLACE "        context loop_scope(scope);\n" "" jinja_runtime "${jinja_runtime}")
string(REPLACE "            scope_update_fn(loop_scope);\n" "            context loop_scope(scope);\n            scope_update_fn(loop_scope);\n"
  jinja_runtime "${jinja_runtime}")
file(WRITE ${CMAKE_BINARY_DIR}/dep_jinja/runtime.cpp.new "${jinja_runtime}")
file(COPY_FILE ${CMAKE_BINARY_DIR}/dep_jinja/runtime.cpp.new ${CMAKE_BINARY_DIR}/dep_jinja/runtime.cpp ONLY_IF_DIFFERENT)
set_source_files_properties(${CMAKE_BINARY_DIR}/dep_jinja/runtime.cpp PROPERTIES COMPILE_OPTIONS "-iquote;${jinja}/jinja")
add_library(manta_dep_jinja STATIC EXCLUDE_FROM_ALL
  ${jinja}/jinja/caps.cpp ${jinja}/jinja/lexer.cpp ${jinja}/jinja/parser.cpp ${CMAKE_BINARY_DIR}/dep_jinja/runtime.cpp
  ${jinja}/jinja/string.cpp ${jinja}/jinja/value.cpp ${jinja}/json.cpp ${jinja}/unicode.cpp)
target_include_directories(manta_dep_jinja SYSTEM PUBLIC ${jinja} PRIVATE ${CMAKE_BINARY_DIR}/dep_jinja)
target_compile_options(manta_dep_jinja PRIVATE -w)
if(MANTA_SANITIZE MATCHES undefined)
  # It computes integers through doubles: one beyond 64 bits becomes another, wrong one, and nothing else.
  target_compile_options(manta_dep_jinja PRIVATE -fno-sanitize=float-cast-overflow,signed-integer-overflow)
endif()
target_compile_definitions(manta_dep_jinja PRIVATE NDEBUG)  # it asserts on malformed templates before it reports them
target_link_libraries(manta_dep_jinja PRIVATE nlohmann_json::nlohmann_json)

# Built once by ./dev deps (-O2, no LTO), because it costs a minute and a half on two cores. The fuzz lane compiles it anew, with its
# own flags: grammars come from users, and a fuzzer is blind in code that does not count its branches.
set(xgrammar ${MANTA_DEPS_DIR}/xgrammar)
if(MANTA_FUZZ)
  file(GLOB_RECURSE xgrammar_sources ${xgrammar}/cpp/*.cc)
  list(FILTER xgrammar_sources EXCLUDE REGEX "/cpp/tvm_ffi/")
  add_library(manta_dep_xgrammar STATIC EXCLUDE_FROM_ALL ${xgrammar_sources})
  target_compile_options(manta_dep_xgrammar PRIVATE -w)
  set_target_properties(manta_dep_xgrammar PROPERTIES CXX_STANDARD 17)
  set(scope PUBLIC)
else()
  add_library(manta_dep_xgrammar STATIC IMPORTED)
  set_target_properties(manta_dep_xgrammar PROPERTIES IMPORTED_LOCATION ${MANTA_DEPS_DIR}/xgrammar-build/libxgrammar.a)
  set(scope INTERFACE)
endif()
target_include_directories(manta_dep_xgrammar SYSTEM ${scope}
  ${xgrammar}/include ${xgrammar}/3rdparty/picojson ${xgrammar}/3rdparty/dlpack/include)
target_compile_definitions(manta_dep_xgrammar ${scope} XGRAMMAR_ENABLE_CPPTRACE=0 XGRAMMAR_ENABLE_INTERNAL_CHECK=0)
target_link_libraries(manta_dep_xgrammar ${scope} Threads::Threads)

# clang-14 (fuzzing, clang-tidy) has C++20 coroutines, but libstdc++ and Boost 1.74 look for later feature macros.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 15)
  add_compile_definitions(__cpp_impl_coroutine=201902L BOOST_ASIO_HAS_CO_AWAIT BOOST_ASIO_HAS_STD_COROUTINE)
  add_compile_options(-Wno-builtin-macro-redefined)
endif()
