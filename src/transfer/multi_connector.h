// MultiConnector: several connectors behind one. A request's rows come from the first child that has any; each child
// may offer them; blocks are given back when the last child that keeps them is done.
#pragma once

#include <memory>
#include <vector>

#include "transfer/kv_connector.h"

namespace manta::transfer {

std::unique_ptr<KvConnectorScheduler> make_multi_scheduler(std::vector<std::unique_ptr<KvConnectorScheduler>> children);
// Children in the same order.
std::unique_ptr<KvConnectorWorker> make_multi_worker(std::vector<std::unique_ptr<KvConnectorWorker>> children);

}  // namespace manta::transfer
