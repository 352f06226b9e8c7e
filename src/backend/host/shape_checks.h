// What every backend's init() asks of a model's shape and of the limits. Messages carry the name, value and bound.
#pragma once

#include "backend/backend.h"

namespace manta::backend::host {

Status check_positive(const char* name, int value);
Status check_shape(const ModelShape& shape);
Status check_limits(const Limits& limits, const ModelShape& shape);

}  // namespace manta::backend::host
