// Walks the fields of struct Settings together with their keys, in table order.
#pragma once

#include "base/settings.h"

namespace manta::settings {

// Calls visit(key, field) for every field; S is Settings or const Settings.
template <typename S, typename Visitor>
void for_each_field(S& s, Visitor&& visit) {
#define SETTING(type, name, ...) visit(#name, s.name);
#define FIELD(object, type, name, ...) visit(#object "." #name, s.object.name);
#include "base/settings/settings.def"
}

}  // namespace manta::settings
