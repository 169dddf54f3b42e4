// SPDX-License-Identifier: Apache-2.0
// Tests of the model itself; a report says what does not hold.
#pragma once

#include <cstdint>

void run_intrinsics();

uint16_t half_bits(float value);
uint16_t bfloat16_bits(float value);
float half_value(uint16_t bits);
float bfloat16_value(uint16_t bits);
