// Settings between parent and child, and between the nodes of a deployment.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/settings.h"
#include "base/settings/fields.h"
#include "base/settings/table.h"

namespace manta {
namespace {

using ::testing::HasSubstr;

// Gives every field a value that is not its default.
struct Changer {
  void operator()(const char*, bool& v) { v = !v; }
  void operator()(const char*, int64_t& v) { v += 7; }
  void operator()(const char*, double& v) { v = v / 3 + 0.1; }
  void operator()(const char*, std::string& v) { v += "\"\n\xe2\x9c\x93"; }
  void operator()(const char*, JsonText& v) { v.text = R"({"a":[1,null,{"b":"c"}]})"; }
  template <typename T>
  void operator()(const char* key, std::vector<T>& v) {
    T one{};
    (*this)(key, one);
    v = {one, one};
  }
  template <typename T>
  void operator()(const char* key, std::optional<T>& v) {
    (*this)(key, v.emplace());
  }
};

TEST(SettingsJson, RoundTripIsExact) {
  Settings s;
  EXPECT_EQ(*settings_from_json(to_json(s)), s);
  settings::for_each_field(s, Changer{});
  EXPECT_FALSE(s == Settings{});
  const auto back = settings_from_json(to_json(s));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(*back, s);
}

TEST(SettingsJson, AnotherBuildIsNoticed) {
  auto values = nlohmann::json::parse(to_json(Settings{}));
  const auto message = [](const nlohmann::json& v) {
    const auto out = settings_from_json(v.dump());
    return out.ok() ? "accepted" : out.error().message;
  };
  auto more = values;
  more["new_key"] = 1;
  EXPECT_THAT(message(more), HasSubstr("1 unknown keys"));
  auto less = values;
  less.erase("port");
  EXPECT_THAT(message(less), HasSubstr("port is missing"));
  auto other = values;
  other["port"] = "text";
  EXPECT_THAT(message(other), HasSubstr("port: "));
  EXPECT_FALSE(settings_from_json("[]").ok());
  EXPECT_FALSE(settings_from_json("{").ok());
  EXPECT_FALSE(settings_from_json("").ok());
}

// Each field alone: hash and difference see it exactly when its row says that nodes must agree.
TEST(ConfigHash, SeesTheRowsThatMustAgreeAndNoOther) {
  const Settings base;
  int compared = 0;
  settings::for_each_field(base, [&](const std::string& wanted, const auto&) {
    Settings other;
    settings::for_each_field(other, [&](const std::string& key, auto& field) {
      if (key == wanted) Changer{}(key.c_str(), field);
    });
    const settings::Setting* row = settings::find(wanted);
    ASSERT_NE(row, nullptr) << wanted;
    EXPECT_EQ(config_hash(base) != config_hash(other), row->same_on_all_nodes) << wanted;
    const auto difference = first_difference(base, other);
    ASSERT_EQ(difference.has_value(), row->same_on_all_nodes) << wanted;
    EXPECT_EQ(difference.value_or(SettingDifference{wanted, "", ""}).key, wanted);
    compared += row->same_on_all_nodes;
  });
  EXPECT_GT(compared, 30);
}

TEST(ConfigHash, DifferenceShowsBothValues) {
  Settings a, b;
  a.eplb_config.num_redundant_experts = 32;
  const auto difference = first_difference(a, b);
  ASSERT_TRUE(difference.has_value());
  EXPECT_EQ(difference->key, "eplb_config.num_redundant_experts");
  EXPECT_EQ(difference->here, "32");
  EXPECT_EQ(difference->there, "0");
  EXPECT_EQ(config_hash(a).size(), 16u);
}

}  // namespace
}  // namespace manta
