# libmanta_cuda.so: kernels for sm_90a alone, compiled ahead of time. `90a-real` keeps the compute_90 PTX out, which
# would double the build and cannot hold Hopper's own instructions. The runtime is linked statically: a machine needs a
# driver and nothing else.
find_package(CUDAToolkit 13 REQUIRED)
file(GLOB cuda_sources CONFIGURE_DEPENDS cuda/*.cc cuda/*.cu cuda/*/*.cc cuda/*/*.cu)
add_library(manta_cuda SHARED ${cuda_sources})
set_target_properties(manta_cuda PROPERTIES CUDA_ARCHITECTURES 90a-real CUDA_VISIBILITY_PRESET hidden
  CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
target_compile_options(manta_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -Xcudafe --diag_suppress=177>)
target_include_directories(manta_cuda PRIVATE ${CMAKE_SOURCE_DIR}/src)
target_link_libraries(manta_cuda PRIVATE manta_backend CUDA::cudart_static)
# Its own copies of the rooms it uses stay its own.
target_link_options(manta_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,--no-undefined)
