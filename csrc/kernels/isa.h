// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fastyolo {

// The instruction set whose kernels are in use: "avx512", "avx2" or "baseline". The best one that the CPU has, unless
// the environment variable FASTYOLO_CPU_ISA names a lesser one; decided once, at the first call.
const char* cpu_isa_name();

}  // namespace fastyolo
