//! The first process of every pod: holds the pod's namespaces, buries orphans, and ends when told to.
//!
//! Built on its own by `build.rs`, without the standard library, so that it is a static program of about a kilobyte.

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
const ANY_CHILD: usize = usize::MAX;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const WAIT4: usize = 61;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const WAIT4: usize = 260;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

/// # Safety
/// As the system call that `number` names asks of its arguments.
unsafe fn call(number: usize, arguments: [usize; 4]) -> isize {
    let [first, second, third, fourth] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention; the caller vouches for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") first, in("rsi") second, in("rdx") third,
            in("r10") fourth, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's calling convention; the caller vouches for the arguments.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") first as isize => result, in("x1") second, in("x2") third,
            in("x3") fourth, options(nostack));
    }
    result
}

/// Where the kernel starts the program: it owes no return address and only just aligns the stack.
#[unsafe(no_mangle)]
#[unsafe(naked)]
extern "C" fn _start() -> ! {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("xor ebp, ebp", "call {}", "ud2", sym pause);
    #[cfg(target_arch = "aarch64")]
    naked_asm!("mov x29, 0", "mov x30, 0", "bl {}", "brk 1", sym pause);
}

extern "C" fn pause() -> ! {
    // Waited for rather than handled: a handler needs a trampoline, and the first process of a namespace is spared signals that
    // it neither handles nor blocks.
    let awaited: u64 = [SIGINT, SIGTERM, SIGCHLD].iter().fold(0, |set, signal| set | 1 << (signal - 1));
    let set = &raw const awaited as usize;
    // SAFETY: `set` points at the eight bytes that the fourth argument announces; the other pointers may be null.
    unsafe { call(number::RT_SIGPROCMASK, [SIG_BLOCK, set, 0, size_of::<u64>()]) };
    loop {
        // SAFETY: as above.
        let signal = unsafe { call(number::RT_SIGTIMEDWAIT, [set, 0, 0, size_of::<u64>()]) } as i32;
        match signal {
            // SAFETY: no pointers.
            SIGINT | SIGTERM => unsafe { _ = call(number::EXIT_GROUP, [0; 4]) },
            // Signals of one kind merge: whoever has died by now is buried. SAFETY: null pointers are allowed.
            SIGCHLD => while unsafe { call(number::WAIT4, [ANY_CHILD, 0, WNOHANG, 0]) } > 0 {},
            // Interrupted, by a stop and a continue say.
            _ => {}
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
