// The subcommands of the manta binary. Each takes what follows its name and returns the process's exit code:
// 0 done, 1 failed, 2 the command line or configuration is wrong.
#pragma once

#include <string>
#include <vector>

namespace manta {

using Args = std::vector<std::string>;

int run_serve(const Args& args);        // one deployment on this node: starts and supervises everything below
int run_router(const Args& args);       // the front door of prefill and decode deployments
int run_up(const Args& args);           // a pd.yaml on this machine: its deployments and the router
int run_api(const Args& args);          // the OpenAI server of a deployment
int run_engine(const Args& args);       // one DP rank
int run_coordinator(const Args& args);  // membership of a deployment
int run_settings(const Args& args);     // the settings table, for people
int run_bench(const Args& args);        // load generator
int run_status(const Args& args);       // how a deployment is
int run_chat(const Args& args);         // a conversation in a terminal

}  // namespace manta
