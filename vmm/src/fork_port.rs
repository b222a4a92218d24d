//! The fork port, the host's side (see [`spore_protocol::fork_port`]).
//!
//! A page of registers: reading `FORK` parks the vCPU if a checkpoint is wanted, and a fork says
//! `WOKE` and `READY`. Until it is ready, nothing but its disks may reach it: sockets and the
//! generation id's interrupt wait for [`ForkPort::is_awake`].

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use spore_protocol::fork_port::{CLOCK, FORK, MAGIC, MAGIC_VALUE, PAGE_BYTES, READY, REGISTERS, WOKE};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::clock::monotonic_ns;

/// What a guest's access to the registers asks of the vCPU that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRead {
    /// To go on.
    GoOn,
    /// To stay where it is: the machine is to be saved here.
    Park,
}

/// What a fork has reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// When its machine was let run, in monotonic nanoseconds.
    pub released_ns: Option<u64>,
    /// When it read `FORK` and was stopped there, in monotonic nanoseconds.
    pub parked_ns: Option<u64>,
    /// When it wrote `WOKE`.
    pub woke_ns: Option<u64>,
    /// When it wrote `READY`, and what.
    pub ready: Option<(u64, u32)>,
}

/// What is to be done with a report, once.
pub type Then = Box<dyn FnOnce(Report) + Send>;

/// The port of one machine.
pub struct ForkPort {
    /// A checkpoint is wanted: the next read of `FORK` parks.
    armed: AtomicBool,
    /// It was wanted, and nobody has said since that it is not.
    wanted: AtomicBool,
    /// Nothing is held back from the guest.
    awake: AtomicBool,
    report: Mutex<Report>,
    /// What the vCPU that says it is ready does first.
    when_ready: Mutex<Option<Then>>,
    /// Readable when a vCPU has parked.
    parked: EventFd,
    /// Readable when the guest wrote `READY`; for the machine's owner.
    ready: EventFd,
    /// The same for the I/O thread.
    awoken: EventFd,
}

impl ForkPort {
    /// The port of a machine that boots (`asleep` false) or was saved at its port.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn new(asleep: bool) -> io::Result<Self> {
        let event = || EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
        Ok(Self {
            armed: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            awake: AtomicBool::new(!asleep),
            report: Mutex::default(),
            when_ready: Mutex::default(),
            parked: event()?,
            ready: event()?,
            awoken: event()?,
        })
    }

    /// The offset of an address in the register page.
    pub fn offset(address: u64) -> Option<u64> {
        address
            .checked_sub(REGISTERS)
            .filter(|offset| *offset < PAGE_BYTES as u64)
    }

    /// A guest's read. What is no register reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> AfterRead {
        data.fill(0);
        if let (CLOCK, Ok(data)) = (offset, <&mut [u8; 8]>::try_from(&mut *data)) {
            *data = realtime_ns().to_le_bytes();
            return AfterRead::GoOn;
        }
        match (offset, <&mut [u8; 4]>::try_from(data)) {
            (MAGIC, Ok(data)) => *data = MAGIC_VALUE.to_le_bytes(),
            (FORK, Ok(_)) if self.armed.swap(false, Ordering::SeqCst) => {
                self.report().parked_ns = Some(monotonic_ns());
                // Cannot fail: the counter is far from its limit.
                let _ = self.parked.write(1);
                return AfterRead::Park;
            }
            _ => {}
        }
        AfterRead::GoOn
    }

    /// A guest's write.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            WOKE => {
                self.report().woke_ns.get_or_insert_with(monotonic_ns);
            }
            READY => {
                let mut report = self.report();
                // The first word counts: a guest cannot take back that a repair failed.
                if report.ready.is_none() {
                    report.ready = Some((monotonic_ns(), value));
                    let said = *report;
                    drop(report);
                    // One that is not who it should be never hears from anybody.
                    if value == 0 {
                        self.awake.store(true, Ordering::SeqCst);
                        // Before threads are woken, which takes longer.
                        let mut then = self.when_ready();
                        if let Some(then) = then.take() {
                            then(said);
                        }
                        let _ = self.awoken.write(1);
                    }
                    let _ = self.ready.write(1);
                    // Who was woken may be on this processor, and would wait there for a tick.
                    std::thread::yield_now();
                }
            }
            _ => {}
        }
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn when_ready(&self) -> MutexGuard<'_, Option<Then>> {
        self.when_ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the vCPU on which the guest says that it is who it should be do this, before anybody is woken to hear of
    /// it. A guest that could not become so does not do it.
    pub fn do_when_ready(&self, then: Then) {
        *self.when_ready() = Some(then);
    }

    /// Whatever [was to be done](ForkPort::do_when_ready) is not any more; false when it has been.
    pub fn withdraw(&self) -> bool {
        self.when_ready().take().is_some()
    }

    /// The machine is let run now.
    pub fn released(&self) {
        self.report().released_ns = Some(monotonic_ns());
    }

    /// What the guest has reported since the machine was made.
    pub fn reported(&self) -> Report {
        *self.report()
    }

    /// Wants the next read of `FORK` to park, or not any more.
    pub fn arm(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::SeqCst);
        self.armed.store(wanted, Ordering::SeqCst);
        let _ = self.parked.read();
    }

    /// Whether the next read of `FORK` is to park, or one has since that was wanted.
    pub fn is_wanted_or_visited(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Whether nothing is held back from the guest.
    pub fn is_awake(&self) -> bool {
        self.awake.load(Ordering::SeqCst)
    }

    /// Readable when a vCPU has parked.
    pub fn parked_event(&self) -> &EventFd {
        &self.parked
    }

    /// Readable when the guest wrote `READY`.
    pub fn ready_event(&self) -> &EventFd {
        &self.ready
    }

    /// The same, for the I/O thread.
    pub fn awoken_event(&self) -> &EventFd {
        &self.awoken
    }
}

/// The host's `CLOCK_REALTIME`, in nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(port: &ForkPort, register: u64) -> (u32, AfterRead) {
        let mut data = [0xAA; 4];
        let after = port.read(register, &mut data);
        (u32::from_le_bytes(data), after)
    }

    #[test]
    fn only_a_wanted_checkpoint_parks_and_only_once() {
        let port = ForkPort::new(false).unwrap();
        assert_eq!(read(&port, MAGIC).0, MAGIC_VALUE);
        assert_eq!(read(&port, FORK), (0, AfterRead::GoOn));
        port.arm(true);
        assert_eq!(read(&port, FORK), (0, AfterRead::Park));
        assert_eq!(read(&port, FORK), (0, AfterRead::GoOn));
        assert!(port.is_wanted_or_visited());
        port.arm(true);
        port.arm(false);
        assert!(!port.is_wanted_or_visited());
        assert_eq!(read(&port, FORK), (0, AfterRead::GoOn));
    }

    #[test]
    fn a_fork_is_awake_when_it_says_ready_and_cannot_say_otherwise_later() {
        let port = ForkPort::new(true).unwrap();
        assert!(!port.is_awake());
        port.write(WOKE, &1u32.to_le_bytes());
        assert!(!port.is_awake() && port.reported().woke_ns.is_some());
        port.write(READY, &0u32.to_le_bytes());
        port.write(READY, &2u32.to_le_bytes());
        assert!(port.is_awake() && port.awoken_event().read().is_ok());
        assert_eq!(port.reported().ready.map(|(_, value)| value), Some(0));
    }

    #[test]
    fn a_fork_that_could_not_be_repaired_never_is_awake() {
        let port = ForkPort::new(true).unwrap();
        port.write(READY, &2u32.to_le_bytes());
        port.write(READY, &0u32.to_le_bytes());
        assert!(!port.is_awake() && port.awoken_event().read().is_err());
        assert!(port.ready_event().read().is_ok());
        assert_eq!(port.reported().ready.map(|(_, value)| value), Some(2));
    }

    #[test]
    fn who_is_ready_does_what_was_to_be_done_once_and_only_then() {
        let done = std::sync::Arc::new(Mutex::new(Vec::new()));
        let port = |value: u32, withdrawn: bool| {
            let port = ForkPort::new(true).unwrap();
            port.released();
            let released = port.reported().released_ns.unwrap();
            let done = done.clone();
            port.do_when_ready(Box::new(move |report| {
                assert_eq!(report.released_ns, Some(released));
                done.lock().unwrap().push(report.ready.map(|(_, value)| value));
            }));
            if withdrawn {
                assert!(port.withdraw());
            }
            port.write(READY, &value.to_le_bytes());
            port.write(READY, &value.to_le_bytes());
            port.withdraw()
        };
        assert!(!port(0, true), "there is nothing any more");
        assert!(port(2, false), "not by one that could not be repaired");
        assert!(done.lock().unwrap().is_empty());
        assert!(!port(0, false));
        assert_eq!(*done.lock().unwrap(), [Some(0)]);
    }

    #[test]
    fn the_clock_is_the_hosts_at_the_read() {
        let port = ForkPort::new(true).unwrap();
        let mut data = [0; 8];
        let before = realtime_ns();
        assert_eq!(port.read(CLOCK, &mut data), AfterRead::GoOn);
        assert!((before..=realtime_ns()).contains(&u64::from_le_bytes(data)));
        assert_eq!(read(&port, CLOCK).0, 0, "half of it is not readable");
    }

    #[test]
    fn odd_accesses_do_nothing() {
        let port = ForkPort::new(true).unwrap();
        port.arm(true);
        let mut data = [1; 8];
        assert_eq!(port.read(FORK, &mut data), AfterRead::GoOn);
        assert_eq!(port.read(PAGE_BYTES as u64 - 1, &mut data[..1]), AfterRead::GoOn);
        port.write(READY, &[0]);
        assert!(!port.is_awake());
    }
}
