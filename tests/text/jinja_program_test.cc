// The engine as we bound and mend it. Expected texts are Jinja2's.
#include "text/jinja_program.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "text/python_json.h"

namespace manta::text {
namespace {

using Json = nlohmann::ordered_json;

Result<std::string> render(const std::string& source, const Json& variables = Json::object()) {
  MANTA_ASSIGN(const JinjaProgram program, JinjaProgram::parse(source));
  std::vector<JinjaProgram::Variable> list;
  for (const auto& [name, value] : variables.items()) list.push_back({name, &value});
  return program.render(list);
}

std::string text(const std::string& source, const Json& variables = Json::object()) {
  const auto result = render(source, variables);
  EXPECT_TRUE(result.ok()) << source << ": " << result.error().message;
  return result.ok() ? *result : "";
}

std::string repeat(const std::string& unit, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += unit;
  return all;
}

TEST(JinjaProgram, ToJsonIsJsonDumps) {
  const Json value =
      Json::parse(R"({"z": 1, "a": [1.0, 0.1, 1e-7, 1e16, -0.0, 18446744073709551615, -9223372036854775808],
      "s": "q\"\\\n\t\u0001é\u007f😀/", "n": null, "t": true, "e": [], "o": {}})");
  EXPECT_EQ(text("{{ x | tojson }}", {{"x", value}}),
            R"({"z": 1, "a": [1.0, 0.1, 1e-07, 1e+16, -0.0, 18446744073709551615, -9223372036854775808], )"
            "\"s\": \"q\\\"\\\\\\n\\t\\u0001é\x7f😀/\", \"n\": null, \"t\": true, \"e\": [], \"o\": {}}");
  EXPECT_EQ(text("{{ x | tojson(ensure_ascii=True) }}", {{"x", "é😀"}}), R"("\u00e9\ud83d\ude00")");
  EXPECT_EQ(text("{{ x | tojson(indent=2) }}", {{"x", {{"a", {1, 2}}, {"b", Json::array()}}}}),
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": []\n}");
  EXPECT_EQ(text("{{ x | tojson(separators=(',', ':'), sort_keys=True) }}", {{"x", {{"b", 1}, {"a", 2}}}}),
            R"({"a":2,"b":1})");
  EXPECT_EQ(text("{{ {'k': x, 2: (1.5, 2), none: [x | tojson]} | tojson }}", {{"x", 1.0}}),
            R"({"k": 1.0, "2": [1.5, 2], "null": ["1.0"]})");
  EXPECT_EQ(text("{% for k, v in x.items() %}{{ k ~ '=' ~ (v | tojson) ~ ';' }}{% endfor %}", {{"x", {{"a", 2.0}}}}),
            "a=2.0;");
  EXPECT_FALSE(render("{{ missing | tojson }}").ok());
  EXPECT_FALSE(render("{{ x.items | tojson }}", {{"x", Json::object()}}).ok());
}

TEST(JinjaProgram, FloatsPrintAsInPython) {
  EXPECT_EQ(text("{{ x }}", {{"x", 1e-7}}), "1e-07");
  EXPECT_EQ(text("{{ 'v=' ~ x }}", {{"x", 3.0}}), "v=3.0");
  const std::pair<double, const char*> cases[] = {{0.0, "0.0"},
                                                  {-0.0, "-0.0"},
                                                  {1.0, "1.0"},
                                                  {123.456, "123.456"},
                                                  {1e15, "1000000000000000.0"},
                                                  {1e16, "1e+16"},
                                                  {1.25e-5, "1.25e-05"},
                                                  {0.0001, "0.0001"},
                                                  {1e100, "1e+100"},
                                                  {5e-324, "5e-324"},
                                                  {0.1 + 0.2, "0.30000000000000004"}};
  for (const auto& [value, expected] : cases) EXPECT_EQ(python_float(value), expected);
  EXPECT_EQ(python_float(INFINITY), "Infinity");
  EXPECT_EQ(python_float(-INFINITY), "-Infinity");
  EXPECT_EQ(python_float(NAN), "NaN");
}

TEST(JinjaProgram, ValuesPrintAsInPython) {
  const Json x = Json::parse(R"({"a": [1, 1.0, null, true, "it's", "q\"'\n\\"], "b": {}, "c": "é"})");
  EXPECT_EQ(text("{{ x }}|{{ none }}|{{ missing }}|{{ true }}|{{ (1, 'a') }}|{{ x.c }}", {{"x", x}}),
            R"({'a': [1, 1.0, None, True, "it's", 'q"\'\n\\'], 'b': {}, 'c': 'é'}|None||True|(1, 'a')|é)");
  EXPECT_EQ(text("{% if 1 %}{{ [none] }}{% else %}{% endif %}{% for i in [[]] %}{{ i }}{% endfor %}"
                 "{% macro f(v) %}<{{ v }}>{% endmacro %}{{ f(none) }}{% set b %}{{ [1] }}{% endset %}{{ b }}"),
            "[None][]<None>[1]");
}

TEST(JinjaProgram, BlocksAreTrimmedAsTransformersSetsJinjaUp) {
  EXPECT_EQ(text("  {% if true %}\na\n  {% endif %}\nb\n"), "a\nb");
  EXPECT_EQ(text("a {{- 'x' -}} b"), "axb");
  EXPECT_EQ(text("{# note #}\na"), "a");
}

TEST(JinjaProgram, LoopsMacrosAndRangesAreBounded) {
  const auto exhausted = [](const std::string& source) {
    const auto result = render(source);
    ASSERT_FALSE(result.ok()) << source;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument) << result.error().message;
  };
  exhausted("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
  exhausted("{% macro f() %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}");
  exhausted("{{ range(1000000000000) }}");
  exhausted("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}");
  // The bound grows with what is given: no conversation is too long for a template that walks over it a few times.
  const Json many(std::vector<int>(30000, 1));
  EXPECT_EQ(text("{% for x in many %}{% endfor %}{% for x in many %}{% endfor %}{{ many | length }}", {{"many", many}}),
            "30000");
  EXPECT_EQ(text("{{ range(3) | length }}{{ range(1, 7, 2) | join(',') }}{{ range(2, 0, -1) | join(',') }}"),
            "31,3,52,1");
  EXPECT_FALSE(render("{{ range(1, 2, 0) }}").ok());
  EXPECT_FALSE(render("{{ range('a') }}").ok());
  EXPECT_EQ(text("{{ range(9223372036854775806, 9223372036854775807) | length }}"), "1");
}

TEST(JinjaProgram, SourcesThatWouldNestTooDeepAreRefused) {
  const std::string sources[] = {
      "{{ " + repeat("(", 100) + "1" + repeat(")", 100) + " }}",
      "{{ " + repeat("[", 5000) + " }}",
      "{{ " + repeat("not ", 100000) + "1 }}",
      "{{ 1" + repeat(" + 1", 100000) + " }}",
      "{{ x" + repeat("|trim", 100000) + " }}",
      "{{ x" + repeat("[0]", 100000) + " }}",
      "{{ 1" + repeat(" if 1 else 1", 100000) + " }}",
      repeat("{% if 1 %}", 5000) + repeat("{% endif %}", 5000),
      "{% if 1 %}" + repeat("{% elif 1 %}", 5000) + "{% endif %}",
      repeat("{% set x %}", 5000) + repeat("{% endset %}", 5000),
      std::string(JinjaProgram::kMaxSourceBytes + 1, 'a'),
  };
  for (const auto& source : sources) {
    const auto result = render(source, {{"x", "a"}});
    ASSERT_FALSE(result.ok()) << source.substr(0, 60);
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument) << source.substr(0, 60);
  }
}

TEST(JinjaProgram, TheDeepestAllowedSourcesRun) {
  const int half = JinjaProgram::kMaxTagTokens / 2 - 2;
  EXPECT_EQ(text("{{ 1" + repeat(" + 1", half) + " }}"), std::to_string(half + 1));
  EXPECT_EQ(text("{{ " + repeat("not ", 2 * half) + "1 }}"), "True");
  EXPECT_EQ(text("{{ x" + repeat("|trim", half) + " }}", {{"x", "a"}}), "a");
  EXPECT_EQ(text("{{ 1" + repeat(" if 1 else 1", half / 2) + " }}"), "1");
  EXPECT_EQ(text(repeat("{% if 1 %}", 128) + "a" + repeat("{% endif %}", 128)), "a");
  EXPECT_EQ(text(repeat("{% for x in [1] %}", 128) + "a" + repeat("{% endfor %}", 128)), "a");
  const std::string many_one_line_sets = repeat("{% set x = 1 %}", 1000);
  EXPECT_EQ(text(many_one_line_sets + "{{ x }}"), "1");
}

TEST(JinjaProgram, NoValueCanHoldItself) {
  for (const char* source : {"{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
                             "{% set a = namespace() %}{% set b = namespace(a=[a]) %}{% set a.x = b %}{{ a }}",
                             "{% set l = [] %}{{ l.append(l) }}{{ l }}", "{% set l = [] %}{{ l | append(l) }}",
                             "{% set l = [] %}{{ l['append'](l) }}{{ l }}", "{{ [1].pop() }}"}) {
    const auto result = render(source);
    ASSERT_FALSE(result.ok()) << source;
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(
      text("{% set ns = namespace(x=[]) %}{% for i in [1, 2] %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x }}"),
      "[1, 2]");
  EXPECT_EQ(text("{% if false %}{{ [].append(1) }}{% endif %}ok"), "ok");  // refused when it is done, not before
}

TEST(JinjaProgram, BrokenTemplatesAreErrorsThatSayWhere) {
  for (const char* source : {"{{",
                             "{{ 'a }}",
                             "{% if %}",
                             "{% if 1 %}",
                             "{% for %}{% endfor %}",
                             "{% for 1 in x %}{% endfor %}",
                             "{% endif %}",
                             "{% nothing %}",
                             "{{ a b }}",
                             "{{ ) }}",
                             "{#",
                             "{% set 5 = 3 %}",
                             "{{ x | 5 }}",
                             "{% macro 3() %}{% endmacro %}{{ x }}",
                             "{% call 3() %}{% endcall %}",
                             "{{ f(1=2) }}",
                             "{{ '\\q' }}",
                             "{{ 99999999999999999999999 }}",
                             "{% filter 3 %}a{% endfilter %}",
                             "{{ x is 5 }}",
                             "{{ x[1:2:0] }}"}) {
    const auto result = render(source, {{"x", {1, 2}}});
    if (result.ok()) continue;  // some of these are lenient; none may crash
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument) << source;
    EXPECT_FALSE(result.error().message.empty()) << source;
  }
  const auto result = render("a\nb {{ 1 + [] }}");
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message.find("line 2"), std::string::npos) << result.error().message;
}

}  // namespace
}  // namespace manta::text
