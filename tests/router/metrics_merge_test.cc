#include "router/metrics_merge.h"

#include <gtest/gtest.h>

namespace manta::router {
namespace {

TEST(MetricsMergeTest, FamiliesStayTogetherAndSamplesAreLabelled) {
  MetricsMerger merger;
  const std::string page =
      "# HELP a_total Things.\n# TYPE a_total counter\na_total{engine=\"0\"} 3\n"
      "# HELP b Level.\n# TYPE b gauge\nb 1.5\n";
  merger.add(page, {{"role", "prefill"}, {"api", "0"}});
  merger.add(page, {{"role", "decode"}, {"api", "0"}});
  EXPECT_EQ(merger.page(),
            "# HELP a_total Things.\n# TYPE a_total counter\n"
            "a_total{role=\"prefill\",api=\"0\",engine=\"0\"} 3\n"
            "a_total{role=\"decode\",api=\"0\",engine=\"0\"} 3\n"
            "# HELP b Level.\n# TYPE b gauge\n"
            "b{role=\"prefill\",api=\"0\"} 1.5\n"
            "b{role=\"decode\",api=\"0\"} 1.5\n");
}

TEST(MetricsMergeTest, HistogramsBelongToTheirFamily) {
  MetricsMerger merger;
  merger.add("# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_count 2\nh_sum 1\n# TYPE g gauge\ng 1\n", {{"role", "x"}});
  merger.add("# TYPE h histogram\nh_bucket{le=\"1\"} 5\n", {{"role", "y"}});
  EXPECT_EQ(merger.page(),
            "# TYPE h histogram\nh_bucket{role=\"x\",le=\"1\"} 2\nh_count{role=\"x\"} 2\nh_sum{role=\"x\"} 1\n"
            "h_bucket{role=\"y\",le=\"1\"} 5\n# TYPE g gauge\ng{role=\"x\"} 1\n");
}

TEST(MetricsMergeTest, ALabelThatIsThereStays) {
  MetricsMerger merger;
  merger.add("# TYPE g gauge\ng{role=\"decode\"} 1\ng{x=\"1\",api=\"7\"} 2\ng{} 3\n",
             {{"role", "mixed"}, {"api", "0"}});
  EXPECT_EQ(merger.page(),
            "# TYPE g gauge\ng{api=\"0\",role=\"decode\"} 1\ng{role=\"mixed\",x=\"1\",api=\"7\"} 2\n"
            "g{role=\"mixed\",api=\"0\"} 3\n");
}

TEST(MetricsMergeTest, AnyBytesAreSurvived) {
  MetricsMerger merger;
  merger.add("x\n{\n# TYPE\n# TYPE \n#\n\n 1\nno newline at the end", {{"role", "x"}});
  EXPECT_NE(merger.page().find("no"), std::string::npos);
}

}  // namespace
}  // namespace manta::router
