//! Sleeping and waking at the fork port (see [`spore_protocol::fork_port`]).
//!
//! Between waking and being ready there is as little as there can be: four system calls, and no
//! page that was not touched before. So everything is opened, looked up and rehearsed before the
//! agent goes to sleep. The thread that sleeps there is a real-time one, so that on its processor
//! no other program comes first in the fork.
//!
//! The order of repairs: random numbers first, since everything that starts in the fork may draw
//! some; what programs read next; the hooks last, which are programs themselves.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::time::{ClockId, Timespec};
use spore_protocol::fork_port::{
    CLOCK, FORK, MAGIC, MAGIC_VALUE, MAILBOX, MAX_HOSTNAME_BYTES, MailboxError, PAGE_BYTES, READY, REGISTERS,
    Repair, WOKE, Wake, boot_id_text, machine_id_text,
};

use crate::conversation::Agent;
use crate::hooks::{self, HookError};
use crate::network;
use crate::status::{clock_ns, draw_nonce};
use crate::sys::{self, lock};
use crate::views::View;

/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` (include/uapi/linux/random.h).
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// How far a fork's clock may be from the host's, in nanoseconds.
const CLOCK_NS: u64 = 20_000_000;
/// How often it is set until it is not further.
const CLOCK_TRIES: usize = 100;
/// Heap that is touched before the agent sleeps, for what is made of the mailbox after it woke.
const WARM_BYTES: usize = 64 * 1024;

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

    /// Where a register is. The registers are constants of the protocol: aligned, and inside the page.
    fn at<T>(&self, register: u64) -> *mut T {
        let offset = usize::try_from(register).unwrap_or(0);
        // SAFETY: the offset is inside the page, which is never unmapped.
        unsafe { self.0.as_ptr().add(offset) }.cast()
    }

    fn read(&self, register: u64) -> u32 {
        // SAFETY: aligned and inside the page (`at`); volatile, since reading has effects.
        unsafe { self.at::<u32>(register).read_volatile() }
    }

    fn read_64(&self, register: u64) -> u64 {
        // SAFETY: as in `read`.
        unsafe { self.at::<u64>(register).read_volatile() }
    }

    fn write(&self, register: u64, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.at::<u32>(register).write_volatile(value) };
    }

    fn write_bytes(&self, offset: usize, bytes: &[u8]) {
        let room = PAGE_BYTES.saturating_sub(offset);
        for (index, byte) in bytes.iter().take(room).enumerate() {
            // SAFETY: the offset is inside the page, which is never unmapped.
            unsafe { self.0.as_ptr().add(offset + index).write_volatile(*byte) };
        }
    }

    fn clear(&self) {
        for index in 0..PAGE_BYTES / 8 {
            // SAFETY: the index is below the number of words of the page.
            unsafe { self.0.as_ptr().cast::<u64>().add(index).write_volatile(0) };
        }
    }

    /// Copies the page, which another machine's mind may have changed since.
    fn copy(&self, into: &mut [u64; PAGE_BYTES / 8]) {
        for (index, word) in into.iter_mut().enumerate() {
            // SAFETY: the index is below the number of words of the page.
            *word = unsafe { self.0.as_ptr().cast::<u64>().add(index).read_volatile() };
        }
    }
}

/// What a fork of this machine has to do that does not depend on who it will be: found out before
/// the machine sleeps.
#[derive(Debug)]
struct Plan<'a> {
    agent: &'a Agent,
    machine_id: Result<&'a View, String>,
    boot_id: Result<&'a View, String>,
    hooks: Result<Vec<String>, HookError>,
    network: network::Plan<'a>,
}

/// A repair that failed, and why.
#[derive(Debug)]
struct Failed(Repair, String);

impl Failed {
    fn at<E: Display>(repair: Repair) -> impl FnOnce(E) -> Self {
        move |why| Self(repair, why.to_string())
    }
}

impl<'a> Plan<'a> {
    fn make(agent: &'a Agent) -> Self {
        // A file that something else lies over shows the parent's id in every fork.
        let checked = |view: &'a io::Result<View>| {
            let view = view.as_ref().map_err(ToString::to_string)?;
            view.check().map_err(|error| error.to_string())?;
            Ok(view)
        };
        Self {
            agent,
            machine_id: checked(&agent.views.machine_id),
            boot_id: checked(&agent.views.boot_id),
            hooks: hooks::list(Path::new(hooks::DIRECTORY)),
            network: agent.network.plan(agent.views.resolv_conf.as_ref().ok()),
        }
    }

    fn run_hooks(&self, limit_ms: u32) -> Result<(), Failed> {
        let hooks = match &self.hooks {
            Ok(hooks) if hooks.is_empty() => return Ok(()),
            Ok(hooks) => hooks,
            Err(error) => return Err(Failed(Repair::Hook, error.to_string())),
        };
        // They are programs like any other, and so are we while we wait for them.
        sys::go_first(false);
        let limit = Duration::from_millis(limit_ms.into());
        let defaults = self.agent.defaults.for_exec();
        hooks::run(hooks, &self.agent.reaper, &defaults, io::stderr().as_fd(), limit)
            .map_err(Failed::at(Repair::Hook))
    }
}

impl ForkPort {
    /// The port of this machine.
    ///
    /// # Errors
    /// When there is none, or `/dev/mem` does not let us at it.
    pub fn open() -> io::Result<Self> {
        let memory = |how| rustix::fs::open("/dev/mem", OFlags::RDWR | OFlags::CLOEXEC | how, Mode::empty());
        let registers = Page::map(&memory(OFlags::SYNC)?, REGISTERS)?;
        if registers.read(MAGIC) != MAGIC_VALUE {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "this machine has no fork port",
            ));
        }
        // Memory like any other: without O_SYNC it is cached (mem(4)), and reading it costs next to nothing.
        let mailbox = Page::map(&memory(OFlags::empty())?, MAILBOX)?;
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
    pub fn sleep(&self, agent: &Agent) {
        let mut generation = lock(&self.generation);
        let plan = Plan::make(agent);
        self.rehearse();
        plan.network.rehearse();
        sys::go_first(true);
        wait_for_tick();
        self.registers.read(FORK);
        // Where it is no fork that goes on here, nobody listens.
        self.registers.write(WOKE, 1);
        // A fork's mailbox names another generation; ours does not, or nothing.
        match self.look() {
            Ok(Some(wake)) if wake.generation == *generation => {}
            Ok(None) => {}
            Ok(Some(wake)) => {
                *generation = wake.generation;
                // Random bytes and an environment with who knows what in it: neither stays to be found, in
                // memory or in a checkpoint of this fork.
                self.mailbox.clear();
                match self.repair(wake, &plan) {
                    Ok(()) => self.registers.write(READY, 0),
                    Err(failed) => self.give_up(&failed),
                }
            }
            Err(MailboxError::Variable(name)) => self.give_up(&Failed(Repair::Environment, name)),
            Err(error) => self.give_up(&Failed(Repair::Mailbox, error.to_string())),
        }
        sys::go_first(false);
    }

    fn look(&self) -> Result<Option<Wake>, MailboxError> {
        let mut words = [0; PAGE_BYTES / 8];
        self.mailbox.copy(&mut words);
        let mut page = [0; PAGE_BYTES];
        for (bytes, word) in page.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *bytes = word.to_ne_bytes();
        }
        Wake::from_page(&page)
    }

    fn repair(&self, wake: Wake, plan: &Plan<'_>) -> Result<(), Failed> {
        let shown = |view: &Result<&View, String>, text: &[u8]| match view {
            Ok(view) => view.show(text).map_err(|error| error.to_string()),
            Err(why) => Err(why.clone()),
        };
        self.reseed(&wake.entropy, 512)
            .map_err(Failed::at(Repair::Entropy))?;
        plan.network
            .apply(wake.network.as_ref())
            .map_err(Failed::at(Repair::Network))?;
        shown(&plan.machine_id, &machine_id_text(wake.machine_id)).map_err(Failed::at(Repair::MachineId))?;
        shown(&plan.boot_id, &boot_id_text(wake.boot_id)).map_err(Failed::at(Repair::BootId))?;
        self.set_right_clock(wake.realtime_ns)
            .map_err(Failed::at(Repair::Clock))?;
        if !wake.hostname.is_empty() {
            rustix::system::sethostname(wake.hostname.as_bytes()).map_err(Failed::at(Repair::Hostname))?;
        }
        plan.agent
            .defaults
            .give(wake.env)
            .map_err(|failure| Failed(Repair::Environment, failure.message))?;
        plan.run_hooks(wake.hooks_limit_ms)
    }

    /// Sets the clock to the host's. What the mailbox says is too old: by as much as the host took to let
    /// the fork run; it counts only if the host has no clock to be asked. And the host may take its processor from us between our asking for the time and the
    /// kernel's setting it, so we look afterwards.
    fn set_right_clock(&self, mailbox_ns: u64) -> io::Result<()> {
        let host_ns = || match self.registers.read_64(CLOCK) {
            0 => mailbox_ns,
            now => now,
        };
        let mut off = 0;
        for _ in 0..CLOCK_TRIES {
            set_clock(host_ns())?;
            off = clock_ns(ClockId::Realtime).abs_diff(host_ns());
            if off <= CLOCK_NS {
                return Ok(());
            }
        }
        Err(io::Error::other(format!(
            "it is {off} ns off each time it is set"
        )))
    }

    /// Does all that a fork will do, to no effect: afterwards the code, the stack and the heap that it
    /// takes are in memory.
    fn rehearse(&self) {
        let wake = Wake {
            generation: [0; 16],
            entropy: [[0; 32]; 2],
            realtime_ns: 0,
            hostname: "x".repeat(MAX_HOSTNAME_BYTES),
            machine_id: draw_nonce(),
            boot_id: draw_nonce(),
            env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
            hooks_limit_ms: 0,
            network: None,
        };
        drop(black_box(vec![1u8; WARM_BYTES]));
        let _ = black_box(wake.to_page().map(|page| Wake::from_page(&page)));
        let _ = black_box(self.look());
        black_box((machine_id_text(wake.machine_id), boot_id_text(wake.boot_id)));
        // Two nonces of the kernel's own, which it knows: they add nothing, and nothing is credited.
        let mut entropy = [[0; 32]; 2];
        entropy[0][..16].copy_from_slice(&wake.machine_id);
        entropy[1][..16].copy_from_slice(&wake.boot_id);
        let _ = self.reseed(&entropy, 0);
        black_box(clock_ns(ClockId::Realtime).abs_diff(self.registers.read_64(CLOCK)));
        // Neither can be: the kernel says no at once.
        let _ = set_clock(u64::MAX);
        let _ = rustix::system::sethostname(&[0; MAX_HOSTNAME_BYTES + 1]);
    }

    /// Says that this fork must not be, and why: on the console, in the mailbox, and at last in the
    /// register, after which the host destroys it.
    fn give_up(&self, Failed(repair, why): &Failed) {
        sys::go_first(false);
        eprintln!("spore-agent: {repair}: {why}");
        // The host takes the console's last lines when it sees the register.
        sys::drain(io::stderr().as_fd());
        let (at, bytes) = Wake::put_reason(why);
        self.mailbox.write_bytes(at, &bytes);
        self.registers.write(READY, *repair as u32);
    }

    /// Adds the bytes to the kernel's pool, credited, and makes it draw from the pool anew: what
    /// was drawn before the checkpoint says nothing about what comes now. Both calls are needed: once the
    /// kernel's generator is ready, it takes up what is added to the pool a minute later
    /// (`credit_init_bits`, `crng_reseed_interval` in drivers/char/random.c).
    fn reseed(&self, entropy: &[[u8; 32]; 2], credited_bits: libc::c_int) -> io::Result<()> {
        /// `struct rand_pool_info` with room for 64 bytes.
        #[repr(C)]
        struct PoolInfo {
            entropy_bits: libc::c_int,
            bytes: libc::c_int,
            buffer: [[u8; 32]; 2],
        }
        let info = PoolInfo {
            entropy_bits: credited_bits,
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
