// MODEL and --tokenizer, which may be Hub ids, as folders of this machine: found in the cache or downloaded, once, by
// the parent, before any child starts.
#pragma once

#include "base/env.h"
#include "base/result.h"
#include "base/settings.h"

namespace manta {

// The settings with folders in place of ids. The API goes on answering to the name that was typed.
Result<Settings> with_local_model(Settings settings, const EnvMap& env);

}  // namespace manta
