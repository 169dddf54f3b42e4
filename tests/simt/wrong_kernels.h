// SPDX-License-Identifier: Apache-2.0
// Kernels that are wrong on purpose, and one that is right: the checkers must tell them apart.
#pragma once

#include <string>

// Runs the kernel of this name on 0 .. 63 and returns what it wrote; throws if there is none.
float run_wrong_kernel(const std::string& name);
