#include "manta/model_source.h"

#include <cstdio>

#include "model/hub.h"
#include "model/hub_cache.h"

namespace manta {

Result<Settings> with_local_model(Settings settings, const EnvMap& env) {
  EnvMap hub_env = env;
  if (settings.hf_home) hub_env["HF_HOME"] = *settings.hf_home;
  model::HubOptions hub;
  hub.cache = model::hub_cache_folder(settings.download_dir.value_or(""), hub_env);
  hub.endpoint = settings.hf_endpoint;
  hub.token = settings.hf_token.value_or("");
  hub.revision = settings.revision.value_or("main");
  hub.offline = settings.hf_offline;
  hub.progress = model::print_progress(stderr, "downloading " + settings.model);
  if (settings.served_model_name.empty()) settings.served_model_name = {settings.model};
  MANTA_ASSIGN(settings.model, model::resolve_model(settings.model, hub));
  if (settings.tokenizer) {
    hub.progress = nullptr;
    hub.revision = "main";
    MANTA_ASSIGN(settings.tokenizer, model::resolve_model(*settings.tokenizer, hub));
  }
  return settings;
}

}  // namespace manta
