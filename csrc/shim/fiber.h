// A stack of its own to run a function on, and the switch between two such stacks.
//
// swapcontext() does it anywhere, at the price of a system call each time; where the machine is known a dozen
// instructions do: what a function must preserve is pushed, the stacks change places, and it is popped.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(FUSEDMIX_SHIM_UCONTEXT) && (defined(__x86_64__) || defined(__aarch64__))
#define FUSEDMIX_SHIM_ASSEMBLY
#else
#include <ucontext.h>
#endif

namespace fusedmix::shim {

#if defined(FUSEDMIX_SHIM_ASSEMBLY)

struct Context {
  void* stack = nullptr;
};

extern "C" void fusedmix_shim_switch(void** from, void* to) __asm__("fusedmix_shim_switch");

#if defined(__x86_64__)
__asm__(R"(
.text
.p2align 4
fusedmix_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
__asm__(R"(
.text
.p2align 4
fusedmix_shim_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#endif

// The first switch to `context` calls `entry`, which never returns.
inline void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  auto* const top = reinterpret_cast<uint64_t*>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15});
#if defined(__x86_64__)
  constexpr int kWords = 8, kReturn = 6;  // six registers, where to go, and where that would return to: nowhere
#else
  constexpr int kWords = 20, kReturn = 11;  // x30
#endif
  uint64_t* const frame = top - kWords;
  for (int i = 0; i < kWords; ++i) frame[i] = 0;
  frame[kReturn] = reinterpret_cast<uint64_t>(entry);
  context.stack = frame;
}

inline void switch_context(Context& from, Context& to) { fusedmix_shim_switch(&from.stack, to.stack); }

#else

struct Context {
  ucontext_t context;
};

inline void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace fusedmix::shim
