// dashboard.html, compiled in: it needs nothing but this server.
#pragma once

namespace manta::api {

extern const char* const kDashboardPage;

}  // namespace manta::api
