# Flags of the cpu backend's kernels: one set per instruction set, see src/backend/cpu/kernels.h. No contraction: whether
# a multiply and an add are fused is part of a kernel's numbers and must not be the compiler's choice, case by case.
# GCC 12 takes the "undefined" operand inside its own AVX-512 intrinsics for a mistake (its bug 105593).
set(MANTA_CPU_KERNEL_OPTIONS -O3 -ffp-contract=off -Wno-uninitialized -Wno-maybe-uninitialized)
set(MANTA_CPU_AVX512_OPTIONS -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mprefer-vector-width=512)
set_source_files_properties(cpu/target_portable.cc PROPERTIES COMPILE_OPTIONS "${MANTA_CPU_KERNEL_OPTIONS}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set_source_files_properties(cpu/target_avx2.cc PROPERTIES COMPILE_OPTIONS "${MANTA_CPU_KERNEL_OPTIONS};-mavx2;-mfma")
  set_source_files_properties(cpu/target_avx512.cc PROPERTIES
    COMPILE_OPTIONS "${MANTA_CPU_KERNEL_OPTIONS};${MANTA_CPU_AVX512_OPTIONS}")
  set_source_files_properties(cpu/target_avx512_bf16.cc PROPERTIES
    COMPILE_OPTIONS "${MANTA_CPU_KERNEL_OPTIONS};${MANTA_CPU_AVX512_OPTIONS};-mavx512bf16;-mavx512vbmi")
endif()
