// The KV connector of one rank, from its settings.
#pragma once

#include "base/result.h"
#include "base/settings.h"
#include "transfer/make_connector.h"

namespace manta {

// Empty halves without kv_connector. Listens already: the port is known.
Result<transfer::Connector> make_kv_connector(const Settings& settings, int rank);

}  // namespace manta
