// All experts on this rank: dispatch sorts rows by expert on the device, combine sums them per token.
#pragma once

#include <memory>

#include "ep/expert_transport.h"

namespace manta::backend::cuda {

std::unique_ptr<ep::ExpertTransport> make_device_loopback(ep::ExpertLayout layout);

}  // namespace manta::backend::cuda
