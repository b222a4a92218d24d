//! Sleeping and waking at the fork port (see [`spore_protocol::fork_port`]).
//!
//! Between waking and being ready there is as little as there can be: `wake.rs` has it, and here is what is
//! before and after it. Everything is opened, looked up and rehearsed before the agent goes to sleep. The
//! thread that sleeps there is a real-time one, so that on its processor no other program comes first in
//! the fork.
//!
//! The order of repairs: the clock, the name and random numbers, since everything that starts in the fork may
//! draw some; what programs read next; the hooks last, which are programs themselves.

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
use rustix::time::ClockId;
use spore_protocol::fork_port::{
    Head, MAGIC, MAGIC_VALUE, MAILBOX, MAX_HOSTNAME_BYTES, MailboxError, PAGE_BYTES, READY, REGISTERS,
    Repair, Wake,
};

use crate::conversation::Agent;
use crate::hooks::{self, HookError};
use crate::network;
use crate::status::draw_nonce;
use crate::sys::{self, lock};
use crate::views::View;
use crate::wake::{Mailbox, Text, Waker, Woke};

/// The two pages and what waking needs.
#[derive(Debug)]
pub struct ForkPort {
    registers: Page,
    mailbox: Page,
    random: File,
    waker: Mutex<Box<Waker>>,
}

#[derive(Debug)]
struct Page(NonNull<u8>);

// SAFETY: the page stays mapped for the life of the process, and is only accessed by volatile
// reads and writes, by the one thread that sleeps (it holds the lock on `waker`).
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
    fn copy(&self) -> [u8; PAGE_BYTES] {
        std::array::from_fn(|index| {
            // SAFETY: the index is below the number of bytes of the page.
            unsafe { self.0.as_ptr().add(index).read_volatile() }
        })
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

    fn text(view: &Result<&View, String>) -> Option<Text> {
        view.as_ref().ok().map(|view| view.text())
    }

    /// Whether a fork that is told nothing more has nothing more to do.
    fn is_short(&self) -> bool {
        self.hooks.as_ref().is_ok_and(Vec::is_empty) && self.network.is_off()
    }

    /// A repair that failed at waking, in words.
    fn failed(&self, repair: Repair, errno: i32) -> Failed {
        let view = match repair {
            Repair::MachineId => self.machine_id.as_ref().err(),
            Repair::BootId => self.boot_id.as_ref().err(),
            _ => None,
        };
        let why = view
            .cloned()
            .unwrap_or_else(|| io::Error::from_raw_os_error(errno).to_string());
        Failed(repair, why)
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
        let mut waker = Waker::new(registers.0, mailbox.0, random.as_raw_fd());
        waker.adopt_generation();
        Ok(Self {
            registers,
            mailbox,
            random,
            waker: Mutex::new(waker),
        })
    }

    /// Goes to sleep, to be checkpointed; returns in the machine that was and in every fork of it,
    /// in a fork with its identity repaired and the host told.
    pub fn sleep(&self, agent: &Agent) {
        let mut waker = lock(&self.waker);
        let plan = Plan::make(agent);
        waker.plan(
            Plan::text(&plan.machine_id),
            Plan::text(&plan.boot_id),
            plan.is_short(),
        );
        self.rehearse(&mut waker);
        plan.network.rehearse();
        sys::go_first(true);
        wait_for_tick();
        match waker.sleep() {
            Woke::Same | Woke::Ready => {}
            Woke::More => match self.become_more(&plan) {
                Ok(()) => self.registers.write(READY, 0),
                Err(failed) => self.give_up(&failed),
            },
            Woke::Failed(Repair::Mailbox, _) => self.give_up(&self.malformed()),
            Woke::Failed(repair, errno) => self.give_up(&plan.failed(repair, errno)),
        }
        sys::go_first(false);
    }

    /// What only some forks need.
    fn become_more(&self, plan: &Plan<'_>) -> Result<(), Failed> {
        let head = Head::from_page(&self.mailbox.copy()).map_err(|error| match error {
            MailboxError::Variable(name) => Failed(Repair::Environment, name),
            error => Failed(Repair::Mailbox, error.to_string()),
        })?;
        // An environment with who knows what in it does not stay to be found.
        self.mailbox.clear();
        let head = head.ok_or_else(|| Failed(Repair::Mailbox, "it is empty".to_owned()))?;
        plan.network
            .apply(head.rest.network.as_ref())
            .map_err(Failed::at(Repair::Network))?;
        plan.agent
            .defaults
            .give(head.rest.env)
            .map_err(|failure| Failed(Repair::Environment, failure.message))?;
        plan.run_hooks(head.hooks_limit_ms)
    }

    fn malformed(&self) -> Failed {
        let why = match Head::from_page(&self.mailbox.copy()) {
            Err(error) => error.to_string(),
            Ok(_) => "it cannot be read".to_owned(),
        };
        Failed(Repair::Mailbox, why)
    }

    /// Does all that a fork will do, to no effect: afterwards the code, the stack and the heap that it
    /// takes are in memory.
    fn rehearse(&self, waker: &mut Waker) {
        // Two nonces of the kernel's own, which it knows: they add nothing, and nothing is credited.
        let nonces: [[u8; 16]; 2] = [draw_nonce(), draw_nonce()];
        let wake = Wake {
            generation: nonces[0],
            entropy: std::array::from_fn(|half| std::array::from_fn(|index| nonces[half][index % 16])),
            realtime_ns: 0,
            hostname: "x".repeat(MAX_HOSTNAME_BYTES),
            machine_id: nonces[0],
            boot_id: nonces[1],
            env: std::collections::BTreeMap::new(),
            network: None,
            hooks_limit_ms: 0,
        };
        let page = wake.to_page().ok().and_then(|page| page.try_into().ok());
        if let Some(page) = page {
            let _ = black_box(waker.rehearse(&mut Mailbox(page)));
        }
        // The kernel's pool has a new key after that, which it hashes when the next byte comes: now, rather than
        // in every fork.
        let _ = rustix::io::write(&self.random, &[0]);
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
