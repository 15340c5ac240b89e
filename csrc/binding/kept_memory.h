// The memory of large batches, kept when they are gone for the next ones. Host code.
//
// The C library asks the system for such memory each time anew, and the system hands it out page by page, cleared: that takes twice as
// long as mixing. A training loop needs as much in every step. Of what was given back last, two blocks are kept, for tensors of more than
// half their size.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace fusedmix {

class KeptMemory {
 public:
  // Bytes of a tensor. Less the C library keeps itself, and more no machine has.
  static constexpr double kLeast = 32 << 20, kMost = 1e15;

  // A tensor on the CPU, of so many bytes; null if torch or the system can't.
  static AtenTensorHandle tensor(int64_t bytes, int64_t rank, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
    static const FromBlob from_blob = find();
    if (from_blob == nullptr) return nullptr;
    Block* const block = take(bytes);
    if (block == nullptr) return nullptr;
    AtenTensorHandle handle;
    if (from_blob(block->data, rank, sizes, strides, 0, dtype, aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(),
                  nullptr, 0, keep, block) != AOTI_TORCH_SUCCESS) {
      release(block);
      return nullptr;
    }
    return handle;
  }

 private:
  struct Block {
    void* data;
    int64_t bytes;
  };
  static constexpr int kBlocks = 2;
  static constexpr size_t kAlignment = 2 << 20;  // of a large page

  // torch_from_blob of the stable ABI, which torch has from 2.11 on.
  using FromBlob = AOTITorchError (*)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, AtenTensorHandle*,
                                      int32_t, const uint8_t*, int64_t, void (*)(void*, void*), void*);
  static FromBlob find() {
    const char* wanted = std::getenv("FUSEDMIX_KEEP_MEMORY");
    if (wanted != nullptr && std::string(wanted) == "0") return nullptr;
#if defined(__unix__) || defined(__APPLE__)
    return reinterpret_cast<FromBlob>(dlsym(RTLD_DEFAULT, "torch_from_blob"));
#else
    return nullptr;
#endif
  }

  static Block* take(int64_t bytes) {
    for (std::atomic<Block*>& slot : kept_) {
      Block* const block = slot.exchange(nullptr);
      if (block == nullptr) continue;
      if (block->bytes / 2 < bytes && bytes <= block->bytes) return block;
      put(slot, block);
    }
    const int64_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* const data = std::aligned_alloc(kAlignment, whole);
    return data == nullptr ? nullptr : new Block{data, whole};
  }

  // When a tensor is gone, in whatever thread.
  static void keep(void*, void* block) {
    static std::atomic<uint32_t> turn{0};
    put(kept_[turn.fetch_add(1) % kBlocks], static_cast<Block*>(block));
  }

  static void put(std::atomic<Block*>& slot, Block* block) {
    if (Block* const before = slot.exchange(block)) release(before);
  }

  static void release(Block* block) {
    std::free(block->data);
    delete block;
  }

  static inline std::atomic<Block*> kept_[kBlocks]{};
};

}  // namespace fusedmix
