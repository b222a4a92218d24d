//! Sleeping and waking at the fork port (see [`spore_protocol::fork_port`]).
//!
//! Everything is opened and touched before the agent goes to sleep: waking must cost as few system
//! calls as it has things to repair.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Mutex;

use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::time::{ClockId, Timespec};
use spore_protocol::fork_port::{
    FORK, MAGIC, MAGIC_VALUE, MAILBOX, PAGE_BYTES, READY, REGISTERS, Repair, WOKE, Wake,
};

use crate::sys::lock;

/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` (include/uapi/linux/random.h).
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// The two pages and what waking needs.
#[derive(Debug)]
pub struct ForkPort {
    registers: Page,
    mailbox: Page,
    random: File,
    /// The generation we know ourselves to be.
    generation: Mutex<[u8; 16]>,
}

#[derive(Debug)]
struct Page(NonNull<u8>);

// SAFETY: the page stays mapped for the life of the process, and is only accessed by volatile
// reads and writes, by the one thread that sleeps (it holds the lock on `generation`).
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    fn map(memory: &OwnedFd, address: u64) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice touches nothing of ours.
        let page = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                address,
            )
        }?;
        NonNull::new(page.cast())
            .map(Self)
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    fn read(&self, register: u64) -> u32 {
        // SAFETY: the registers are aligned and inside the page, which is never unmapped.
        unsafe {
            self.0
                .as_ptr()
                .add(usize::try_from(register).unwrap_or(0))
                .cast::<u32>()
                .read_volatile()
        }
    }

    fn write(&self, register: u64, value: u32) {
        // SAFETY: as in `read`.
        unsafe {
            self.0
                .as_ptr()
                .add(usize::try_from(register).unwrap_or(0))
                .cast::<u32>()
                .write_volatile(value)
        };
    }

    /// Copies the page, which another machine's mind may have changed since.
    fn copy(&self, into: &mut [u64; PAGE_BYTES / 8]) {
        for (index, word) in into.iter_mut().enumerate() {
            // SAFETY: the index is below the number of words of the page.
            *word = unsafe { self.0.as_ptr().cast::<u64>().add(index).read_volatile() };
        }
    }
}

impl ForkPort {
    /// The port of this machine.
    ///
    /// # Errors
    /// When there is none, or `/dev/mem` does not let us at it.
    pub fn open() -> io::Result<Self> {
        let memory = rustix::fs::open(
            "/dev/mem",
            OFlags::RDWR | OFlags::SYNC | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let registers = Page::map(&memory, REGISTERS)?;
        if registers.read(MAGIC) != MAGIC_VALUE {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "this machine has no fork port",
            ));
        }
        let mailbox = Page::map(&memory, MAILBOX)?;
        let random = File::options().write(true).open("/dev/urandom")?;
        let port = Self {
            registers,
            mailbox,
            random,
            generation: Mutex::new([0; 16]),
        };
        // Whoever we are now, we are it rightfully.
        if let Ok(Some(wake)) = port.look() {
            *lock(&port.generation) = wake.generation;
        }
        Ok(port)
    }

    /// Goes to sleep, to be checkpointed; returns in the machine that was and in every fork of it,
    /// in a fork with its identity repaired and the host told.
    pub fn sleep(&self) {
        let mut generation = lock(&self.generation);
        wait_for_tick();
        self.registers.read(FORK);
        // Where it is no fork that goes on here, nobody listens.
        self.registers.write(WOKE, 1);
        // A fork's mailbox names another generation; ours does not.
        match self.look() {
            Ok(Some(wake)) if wake.generation == *generation => {}
            Ok(None) => {}
            Ok(Some(wake)) => {
                *generation = wake.generation;
                let failed = self.repair(&wake).err();
                self.registers
                    .write(READY, failed.map_or(0, |repair| repair as u32));
            }
            Err(repair) => self.registers.write(READY, repair as u32),
        }
    }

    fn look(&self) -> Result<Option<Wake>, Repair> {
        let mut words = [0; PAGE_BYTES / 8];
        self.mailbox.copy(&mut words);
        let mut page = [0; PAGE_BYTES];
        for (bytes, word) in page.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *bytes = word.to_ne_bytes();
        }
        Wake::from_page(&page).map_err(|_| Repair::Mailbox)
    }

    fn repair(&self, wake: &Wake) -> Result<(), Repair> {
        self.reseed(&wake.entropy).map_err(|_| Repair::Entropy)?;
        set_clock(wake.realtime_ns).map_err(|_| Repair::Clock)?;
        if !wake.hostname.is_empty() {
            rustix::system::sethostname(wake.hostname.as_bytes()).map_err(|_| Repair::Hostname)?;
        }
        Ok(())
    }

    /// Adds the bytes to the kernel's pool, credited, and makes it draw from the pool anew: what
    /// was drawn before the checkpoint says nothing about what comes now.
    fn reseed(&self, entropy: &[[u8; 32]; 2]) -> io::Result<()> {
        /// `struct rand_pool_info` with room for 64 bytes.
        #[repr(C)]
        struct PoolInfo {
            entropy_bits: libc::c_int,
            bytes: libc::c_int,
            buffer: [[u8; 32]; 2],
        }
        let info = PoolInfo {
            entropy_bits: 512,
            bytes: 64,
            buffer: *entropy,
        };
        // SAFETY: the structure is what this ioctl reads, alive during the call.
        let added = unsafe { libc::ioctl(self.random.as_raw_fd(), RNDADDENTROPY, &raw const info) };
        if added != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: this ioctl takes no argument.
        match unsafe { libc::ioctl(self.random.as_raw_fd(), RNDRESEEDCRNG) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Returns just after the kernel's timer ticked, so that a fork has the most time until it ticks again: the repair is
/// over by then. The coarse clock moves with the tick and is read without a system call.
fn wait_for_tick() {
    /// Longer than a tick of the slowest kernel (100 Hz); one that sleeps through its ticks is not waited for.
    const LIMIT_NS: i64 = 20_000_000;
    let tick = || rustix::time::clock_gettime(ClockId::MonotonicCoarse);
    let now = || {
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        now.tv_sec * 1_000_000_000 + now.tv_nsec
    };
    let (before, since) = (tick(), now());
    while tick() == before && now() - since < LIMIT_NS {}
}

fn set_clock(realtime_ns: u64) -> io::Result<()> {
    const SECOND: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(realtime_ns / SECOND).map_err(io::Error::other)?,
        tv_nsec: i64::try_from(realtime_ns % SECOND).map_err(io::Error::other)?,
    };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}
