// What the process asks of the system once, when the library is opened.
#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl, Linux 5.16

// Tiles are 8 KiB of state a thread, which the system keeps only for those who ask.
__attribute__((constructor)) void ask_for_tiles() {
  syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}

}  // namespace
#endif
