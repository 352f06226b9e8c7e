// A self-signed certificate for "localhost" and its key, for tests only; it protects nothing.
// openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=localhost
//   -addext subjectAltName=DNS:localhost
#pragma once

namespace manta::model {

inline constexpr const char* kTestCertificate = R"(-----BEGIN CERTIFICATE-----
MIIBlDCCATugAwIBAgIUPbaq2lB3qkIYbRD5FFy7GiGWytUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDA4MTMzMloYDzIxMjYxMDMx
MDgxMzMyWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASZeU+vIWR877tp0e25xHs9awxkNt7HDUO0pb19WXGtu7ppltEX2nXH
BkpUkgYMwO6PgN/+IaESwbNfScL/OvHCo2kwZzAdBgNVHQ4EFgQULyFYRnb/OmHr
ktptuiMskKaeyp0wHwYDVR0jBBgwFoAULyFYRnb/OmHrktptuiMskKaeyp0wDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
RwAwRAIgHg9KxKROWzDI6vPCxHPxZ3ViwEmzitN1vNFuuX+6p0MCIFOGHzHtHnYc
K7tws1yy/Y6kDo2X/m86Dkv2XdVE4mxN
-----END CERTIFICATE-----
)";
inline constexpr const char* kTestKey = R"(-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg3hMezaA36mG5bSVM
NzpHiwpssJnrcfEkthZjtSz+PeKhRANCAASZeU+vIWR877tp0e25xHs9awxkNt7H
DUO0pb19WXGtu7ppltEX2nXHBkpUkgYMwO6PgN/+IaESwbNfScL/OvHC
-----END PRIVATE KEY-----
)";

}  // namespace manta::model
