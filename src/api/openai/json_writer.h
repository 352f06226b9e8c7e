// JSON text appended to a string, without a document in between: the token path writes into its connection's buffer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace manta::api {

// With quotes. text must be well-formed UTF-8; what JSON must escape is escaped, all else goes as it is.
void append_json_string(std::string& out, std::string_view text);
// Shortest digits that give the same float; infinities and NaN, which JSON does not have, become ∓9999 (vLLM's floor).
void append_json_number(std::string& out, float value);
void append_json_number(std::string& out, double value);
void append_json_number(std::string& out, int64_t value);

// Puts the commas. Nothing is checked: what is written in a wrong order comes out in that order.
class JsonWriter {
 public:
  explicit JsonWriter(std::string& out) : out_(out), start_(out.size()) {}

  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }
  // name is written as it is: keys are literals of ours.
  JsonWriter& key(std::string_view name) {
    comma();
    out_ += '"';
    out_ += name;
    out_ += "\":";
    return *this;
  }

  JsonWriter& string(std::string_view text) {
    comma();
    append_json_string(out_, text);
    return *this;
  }
  JsonWriter& number(int64_t value) {
    comma();
    append_json_number(out_, value);
    return *this;
  }
  JsonWriter& number(float value) {
    comma();
    append_json_number(out_, value);
    return *this;
  }
  JsonWriter& number(double value) {
    comma();
    append_json_number(out_, value);
    return *this;
  }
  JsonWriter& boolean(bool value) { return raw(value ? "true" : "false"); }
  JsonWriter& null() { return raw("null"); }
  // json: a whole value.
  JsonWriter& raw(std::string_view json) {
    comma();
    out_ += json;
    return *this;
  }

 private:
  JsonWriter& open(char bracket) {
    comma();
    out_ += bracket;
    return *this;
  }
  JsonWriter& close(char bracket) {
    out_ += bracket;
    return *this;
  }
  // A value ends in none of these characters, so the last one tells whether something stands before this one.
  void comma() {
    if (out_.size() == start_) return;
    const char last = out_.back();
    if (last != '{' && last != '[' && last != ':') out_ += ',';
  }

  std::string& out_;
  size_t start_;
};

}  // namespace manta::api
