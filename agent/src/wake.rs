//! What a fork does first, in as few instructions and on as few pages as it can be.
//!
//! A page that a new VM touches for the first time is a fault that the host's KVM has to serve: 20 µs each
//! where KVM is software, and the code of a serializer, a heap, a stack and a C library are dozens. So
//! everything between waking and READY that every fork does is one function ([`Waker::run`]): it reads the
//! mailbox where it lies, makes its system calls itself, keeps what it needs on one page, calls no other
//! function and takes no memory. What only some forks need is done afterwards, in ordinary Rust
//! (`fork_port.rs`).
//!
//! Before the machine sleeps the same function is rehearsed, so that its pages are there.

use std::arch::asm;
use std::io;
use std::ptr::NonNull;

use rustix::thread::ClockId;
use spore_protocol::fork_port::{CLOCK, FORK, MAX_HOSTNAME_BYTES, PAGE_BYTES, READY, Repair, WOKE, layout};

/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` (include/uapi/linux/random.h).
const RNDADDENTROPY: usize = 0x4008_5203;
const RNDRESEEDCRNG: usize = 0x5207;

/// How far a fork's clock may be from the host's, in nanoseconds.
const CLOCK_NS: u64 = 20_000_000;
/// How often it is set until it is not further.
const CLOCK_TRIES: usize = 100;
const SECOND_NS: u64 = 1_000_000_000;

/// `struct rand_pool_info` with room for 64 bytes.
#[repr(C)]
#[derive(Debug)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u64; 8],
}

/// A text that a fork replaces, mapped here.
#[derive(Debug, Clone, Copy)]
pub struct Text(pub NonNull<u8>);

/// Everything that waking needs, on one page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Waker {
    registers: NonNull<u8>,
    mailbox: NonNull<u8>,
    /// A descriptor of `/dev/urandom`, for as long as the process lives.
    random: libc::c_int,
    /// The generation we know ourselves to be.
    generation: [u64; 2],
    machine_id: Option<Text>,
    boot_id: Option<Text>,
    /// Whether a fork is ready when the first repairs are done, unless it was told more.
    short: bool,
    hostname: [u8; MAX_HOSTNAME_BYTES + 1],
    pool: PoolInfo,
}

/// How it went on after the sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woke {
    /// In the machine that was.
    Same,
    /// In a fork of it, which is who it should be and has said so.
    Ready,
    /// In a fork of it, whose first repairs are done, and which was told more, or has hooks to run.
    More,
    /// In a fork of it, in which this failed, with the kernel's error if there was one.
    Failed(Repair, i32),
}

// SAFETY: its pages stay mapped for the life of the process and are only accessed by the one thread that holds
// the lock around it (`ForkPort`).
unsafe impl Send for Waker {}

/// A system call of three arguments; the negative error number if it fails.
///
/// # Safety
/// The arguments are what this call takes, and what they point at is alive and may be read by it.
#[inline(always)]
unsafe fn system_call(number: libc::c_long, arguments: [usize; 3]) -> libc::c_long {
    let result;
    // SAFETY: the caller's; the kernel changes rax, rcx and r11 and none of our stack (AMD64 ABI, A.2.1).
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The error number of a system call that failed.
#[inline(always)]
fn errno(result: libc::c_long) -> i32 {
    i32::try_from(-result).unwrap_or(libc::EIO)
}

/// Copies `WORDS` words of 8 bytes, aligned, one by one: a call of memcpy is a call, on a page of its own.
///
/// # Safety
/// Both ends have that many words.
#[inline(always)]
unsafe fn copy_words<const WORDS: usize>(from: *const u64, to: *mut u64) {
    let mut word = 0;
    while word < WORDS {
        // SAFETY: the caller's.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
        word += 1;
    }
}

/// Copies bytes, as [`copy_words`].
///
/// # Safety
/// Both ends have `bytes` bytes.
#[inline(always)]
unsafe fn copy_bytes(from: *const u8, to: *mut u8, bytes: usize) {
    let mut byte = 0;
    while byte < bytes {
        // SAFETY: the caller's.
        unsafe { to.add(byte).write_volatile(from.add(byte).read_volatile()) };
        byte += 1;
    }
}

impl Waker {
    /// For the register page and the mailbox page, both mapped for ever, and an open descriptor of
    /// `/dev/urandom` that stays so.
    pub fn new(registers: NonNull<u8>, mailbox: NonNull<u8>, random: libc::c_int) -> Box<Self> {
        Box::new(Self {
            registers,
            mailbox,
            random,
            generation: [0; 2],
            machine_id: None,
            boot_id: None,
            short: false,
            hostname: [0; MAX_HOSTNAME_BYTES + 1],
            pool: PoolInfo {
                entropy_bits: 0,
                bytes: 64,
                buffer: [0; 8],
            },
        })
    }

    /// Takes the mailbox's generation for ours, if it names one: whoever we are now, we are it rightfully.
    pub fn adopt_generation(&mut self) {
        // SAFETY: the place is inside the mailbox page and aligned; both ends have two words.
        unsafe {
            copy_words::<2>(
                self.mailbox.as_ptr().add(layout::GENERATION).cast(),
                (&raw mut self.generation).cast(),
            )
        };
    }

    /// Which texts the next fork replaces, and whether it may be ready without more.
    pub fn plan(&mut self, machine_id: Option<Text>, boot_id: Option<Text>, short: bool) {
        (self.machine_id, self.boot_id, self.short) = (machine_id, boot_id, short);
    }

    /// Sleeps, to be checkpointed, and wakes.
    pub fn sleep(&mut self) -> Woke {
        self.run(self.mailbox.as_ptr(), true)
    }

    /// Does all of it to no effect: what it reads is `page`, a mailbox of nobody.
    ///
    /// # Errors
    /// When the kernel does not take random bytes.
    pub fn rehearse(&mut self, page: &mut Mailbox) -> io::Result<()> {
        let texts = (self.machine_id.take(), self.boot_id.take());
        let mut trash = [0u64; 8];
        let place = NonNull::from(&mut trash).cast();
        (self.machine_id, self.boot_id) = (Some(Text(place)), Some(Text(place)));
        let woke = self.run((&raw mut page.0).cast(), false);
        (self.machine_id, self.boot_id) = texts;
        match woke {
            Woke::Failed(_, errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn register<T>(&self, register: u64) -> *mut T {
        let offset = usize::try_from(register).unwrap_or(0);
        // SAFETY: the registers are constants of the protocol, inside the page and aligned.
        unsafe { self.registers.as_ptr().add(offset) }.cast()
    }

    /// `page` is a mailbox page, whose content is as hostile as the host. In earnest, it is the mailbox.
    #[inline(never)]
    #[unsafe(link_section = ".text.spore_wake")]
    fn run(&mut self, page: *mut u8, earnest: bool) -> Woke {
        // SAFETY: a place in the layout is inside the page and aligned for its type.
        let number = |at: usize| unsafe { page.add(at).cast::<u32>().read_volatile() };
        // SAFETY: as above.
        let words = |at: usize| unsafe { page.add(at) }.cast::<u64>();
        if earnest {
            // SAFETY: the register page is mapped; reading and writing these registers is the protocol.
            unsafe {
                self.register::<u32>(FORK).read_volatile();
                // Where it is no fork that goes on here, nobody listens.
                self.register::<u32>(WOKE).write_volatile(1);
            }
        }
        // A fork's mailbox names another generation; ours does not, or nothing.
        let format = number(layout::FORMAT);
        // SAFETY: the place has two words.
        let generation = unsafe {
            let at = words(layout::GENERATION);
            [at.read_volatile(), at.add(1).read_volatile()]
        };
        if format == 0 || generation[0] == self.generation[0] && generation[1] == self.generation[1] {
            return Woke::Same;
        }
        let hostname_bytes = number(layout::HOSTNAME_BYTES) as usize;
        if format != layout::FORMAT_NUMBER || hostname_bytes > MAX_HOSTNAME_BYTES {
            return Woke::Failed(Repair::Mailbox, 0);
        }
        if earnest {
            self.generation[0] = generation[0];
            self.generation[1] = generation[1];
        }

        // The clock. The mailbox's time is as old as the host took to let us run; it counts only if the host
        // has no clock to be asked. Between our asking and the kernel's setting it the host may take its
        // processor from us, so we ask again: what lies between two answers is the most that it can be off.
        // SAFETY: the register page is mapped.
        let host_ns = || unsafe { self.register::<u64>(CLOCK).read_volatile() };
        // SAFETY: the place has one word.
        let told_ns = unsafe { words(layout::REALTIME_NS).read_volatile() };
        let mut tries = 0;
        loop {
            let before = host_ns();
            let now = if before == 0 { told_ns } else { before };
            let nanoseconds = if earnest { now % SECOND_NS } else { u64::MAX };
            let time = [now / SECOND_NS, nanoseconds];
            let clock = ClockId::Realtime as usize;
            // SAFETY: a timespec is two integers of 64 bits (x86-64), alive during the call.
            let set = unsafe { system_call(libc::SYS_clock_settime, [clock, (&raw const time) as usize, 0]) };
            if set < 0 && earnest {
                return Woke::Failed(Repair::Clock, errno(set));
            }
            tries += 1;
            if host_ns().wrapping_sub(before) <= CLOCK_NS {
                break;
            }
            if tries == CLOCK_TRIES {
                return Woke::Failed(Repair::Clock, libc::ETIME);
            }
        }

        // The name. Copied first: the page could change between looking at it and using it.
        // SAFETY: the place and our copy both have room for the longest name, and it is not longer.
        unsafe {
            copy_bytes(
                page.add(layout::HOSTNAME),
                (&raw mut self.hostname).cast(),
                hostname_bytes,
            )
        };
        if hostname_bytes > 0 || !earnest {
            // One more than a name may have, which the kernel refuses at once, in a rehearsal.
            let length = if earnest {
                hostname_bytes
            } else {
                MAX_HOSTNAME_BYTES + 1
            };
            let name = (&raw const self.hostname) as usize;
            // SAFETY: the name has that many bytes.
            let named = unsafe { system_call(libc::SYS_sethostname, [name, length, 0]) };
            if named < 0 && earnest {
                return Woke::Failed(Repair::Hostname, errno(named));
            }
        }

        // Random bytes, credited, and a reseed: what was drawn before the checkpoint says nothing about what
        // comes now. Both calls are needed: once the kernel's generator is ready, it takes up what is added to
        // the pool a minute later (`credit_init_bits`, `crng_reseed_interval` in drivers/char/random.c). The
        // clock and the name came before them because the kernel adds both to its pool as well, and hashes one
        // block less in this order.
        self.pool.entropy_bits = if earnest { 512 } else { 0 };
        // SAFETY: both ends have eight words.
        unsafe { copy_words::<8>(words(layout::ENTROPY), (&raw mut self.pool.buffer).cast()) };
        let random = self.random as usize;
        let pool = (&raw const self.pool) as usize;
        // SAFETY: RNDADDENTROPY reads the structure, which says itself how long it is.
        let added = unsafe { system_call(libc::SYS_ioctl, [random, RNDADDENTROPY, pool]) };
        // SAFETY: RNDRESEEDCRNG takes no argument.
        let reseeded = unsafe { system_call(libc::SYS_ioctl, [random, RNDRESEEDCRNG, 0]) };
        // Random bytes stay nowhere to be found, in memory or in a checkpoint of this fork.
        let mut word = 0;
        while word < 8 {
            // SAFETY: both have eight words.
            unsafe {
                (&raw mut self.pool.buffer)
                    .cast::<u64>()
                    .add(word)
                    .write_volatile(0);
                words(layout::ENTROPY).add(word).write_volatile(0);
            }
            word += 1;
        }
        if added < 0 || reseeded < 0 {
            return Woke::Failed(Repair::Entropy, errno(if added < 0 { added } else { reseeded }));
        }

        // The ids.
        let Some(text) = self.machine_id else {
            return Woke::Failed(Repair::MachineId, 0);
        };
        // SAFETY: the text and the place have that many bytes.
        unsafe {
            copy_bytes(
                page.add(layout::MACHINE_ID),
                text.0.as_ptr(),
                layout::MACHINE_ID_BYTES,
            )
        };
        let Some(text) = self.boot_id else {
            return Woke::Failed(Repair::BootId, 0);
        };
        // SAFETY: the text and the place have that many bytes.
        unsafe { copy_bytes(page.add(layout::BOOT_ID), text.0.as_ptr(), layout::BOOT_ID_BYTES) };

        if !self.short || number(layout::REST_BYTES) != 0 {
            return Woke::More;
        }
        // SAFETY: the place is inside the page; a mailbox that was read is empty. In a rehearsal `READY` is not
        // written: it would be the machine's own.
        unsafe {
            page.add(layout::FORMAT).cast::<u32>().write_volatile(0);
            if earnest {
                self.register::<u32>(READY).write_volatile(0);
            }
        }
        Woke::Ready
    }
}

/// A mailbox page that is only memory.
#[repr(C, align(4096))]
pub struct Mailbox(pub [u8; PAGE_BYTES]);
