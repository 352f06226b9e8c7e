#include "ep/group/segment.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

namespace manta::ep {

namespace {

constexpr size_t kPage = 4096;

size_t pages(size_t num_bytes) {
  return (num_bytes + kPage - 1) / kPage * kPage;
}

// Where the parts of one microbatch begin; each on a page of its own.
struct Parts {
  explicit Parts(const GroupShape& shape) {
    topk_id = pages(sizeof(Mailbox));
    row_of = topk_id + pages(shape.pairs() * sizeof(int32_t));
    rows = row_of + pages(shape.pairs() * sizeof(int32_t));
    output = rows + pages(static_cast<size_t>(shape.max_num_tokens) * shape.row_bytes());
    stride = output + pages(static_cast<size_t>(shape.capacity()) * shape.row_bytes());
  }
  size_t topk_id, row_of, rows, output, stride;
};

Error failed(const char* what, size_t num_bytes) {
  return error(ErrorCode::kResourceExhausted,
               fmt::format("expert transport: {} of {} bytes: {}", what, num_bytes, std::strerror(errno)));
}

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}
Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}
int Fd::release() {
  return std::exchange(fd_, -1);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}
Mapping::~Mapping() {
  if (data_) ::munmap(data_, num_bytes_);
}

Result<Mapping> Mapping::make(size_t num_bytes, int fd) {
  const int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* data = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (data == MAP_FAILED) return failed("mapping", num_bytes);
  ::madvise(data, num_bytes, MADV_DONTDUMP);
  Mapping mapping;
  mapping.data_ = static_cast<char*>(data);
  mapping.num_bytes_ = num_bytes;
  return mapping;
}

size_t Segment::num_bytes(const GroupShape& shape) {
  return Parts(shape).stride * shape.num_microbatches;
}

Segment::Segment(const GroupShape& shape, Fd fd, Mapping mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {
  const Parts parts(shape);
  topk_id_ = parts.topk_id;
  row_of_ = parts.row_of;
  rows_ = parts.rows;
  output_ = parts.output;
  stride_ = parts.stride;
}

Result<Segment> Segment::create(const GroupShape& shape) {
  const size_t num_bytes = Segment::num_bytes(shape);
  Fd fd(::memfd_create("manta-ep", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return failed("a memfd", num_bytes);
  if (::ftruncate(fd.get(), static_cast<off_t>(num_bytes)) != 0 ||
      ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return failed("a memfd", num_bytes);
  }
  MANTA_ASSIGN(Mapping mapping, Mapping::make(num_bytes, fd.get()));
  Segment segment(shape, std::move(fd), std::move(mapping));
  for (int i = 0; i < shape.num_microbatches; ++i) new (&segment.mailbox(i)) Mailbox();
  return segment;
}

Result<Segment> Segment::open(const GroupShape& shape, Fd fd) {
  const size_t num_bytes = Segment::num_bytes(shape);
  struct stat status = {};
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (::fstat(fd.get(), &status) != 0 || seals < 0 || (seals & F_SEAL_SHRINK) == 0 ||
      static_cast<size_t>(status.st_size) != num_bytes) {
    return error(ErrorCode::kDataLoss, fmt::format("its segment is not a sealed one of {} bytes", num_bytes));
  }
  MANTA_ASSIGN(Mapping mapping, Mapping::make(num_bytes, fd.get()));
  return Segment(shape, Fd(), std::move(mapping));  // the mapping keeps the file
}

}  // namespace manta::ep
