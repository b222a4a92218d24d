//! Runs inside a guest: `witness FIFO` is a program that lives through a checkpoint. It looks at the clocks all
//! the time, and keeps `/etc/machine-id` mapped and the boot id open from when it was started. Whenever somebody
//! opens the FIFO to read a line it writes there, as one line:
//!
//! how often it looked, by how many ns a clock that never goes back went back, 32 bytes of `getrandom` and 32 of
//! `/dev/urandom` drawn at that moment, the machine id in its mapping, the boot id through its descriptor.

use std::ffi::{c_int, c_long, c_void};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

#[repr(C)]
struct Timespec {
    seconds: c_long,
    nanoseconds: c_long,
}

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn getrandom(buffer: *mut c_void, length: usize, flags: u32) -> isize;
    fn mmap(at: *mut c_void, length: usize, protection: c_int, flags: c_int, file: c_int, offset: i64)
    -> *mut c_void;
}

/// `CLOCK_MONOTONIC`, `CLOCK_MONOTONIC_RAW`, `CLOCK_MONOTONIC_COARSE`, `CLOCK_BOOTTIME`.
const CLOCKS: [c_int; 4] = [1, 4, 6, 7];

static LOOKS: AtomicU64 = AtomicU64::new(0);
static BACK_NS: AtomicI64 = AtomicI64::new(0);

fn now(clock: c_int) -> i64 {
    let mut time = Timespec {
        seconds: 0,
        nanoseconds: 0,
    };
    // SAFETY: the structure is what the call fills in.
    assert_eq!(unsafe { clock_gettime(clock, &raw mut time) }, 0);
    time.seconds * 1_000_000_000 + time.nanoseconds
}

fn watch() {
    let mut last = CLOCKS.map(now);
    loop {
        for (clock, last) in CLOCKS.into_iter().zip(&mut last) {
            let now = now(clock);
            BACK_NS.fetch_max(*last - now, Ordering::Relaxed);
            *last = now;
        }
        LOOKS.fetch_add(1, Ordering::Relaxed);
        // Not more often: where the kernel is interpreted, waking up costs more than a millisecond.
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn main() {
    let fifo = std::env::args().nth(1).expect("usage: witness FIFO");
    let machine_id = File::open("/etc/machine-id").expect("there is a machine id");
    // PROT_READ, MAP_SHARED.
    // SAFETY: a fresh mapping of a file that is as long, never unmapped.
    let mapped = unsafe { mmap(std::ptr::null_mut(), 32, 1, 1, machine_id.as_raw_fd(), 0) }.cast::<u8>();
    let mut boot_id = File::open("/proc/sys/kernel/random/boot_id").expect("there is a boot id");
    let mut urandom = File::open("/dev/urandom").expect("there are random numbers");
    std::thread::spawn(watch);
    loop {
        // Returns when somebody reads.
        let mut file = File::create(&fifo).expect("the FIFO can be opened");
        let mut random = [0; 64];
        // SAFETY: the buffer is as long as is said.
        assert_eq!(unsafe { getrandom(random.as_mut_ptr().cast(), 32, 0) }, 32);
        urandom.read_exact(&mut random[32..]).expect("random numbers can be read");
        // SAFETY: the mapping is as long; whoever changes it meanwhile does so between two bytes.
        let machine_id: Vec<u8> = (0..32).map(|at| unsafe { mapped.add(at).read_volatile() }).collect();
        let mut boot = String::new();
        boot_id.rewind().and_then(|()| boot_id.read_to_string(&mut boot)).expect("the boot id can be read");
        // Who does not wait for the answer misses it.
        let _ = writeln!(
            file,
            "{} {} {} {} {} {}",
            LOOKS.load(Ordering::Relaxed),
            BACK_NS.load(Ordering::Relaxed),
            hex(&random[..32]),
            hex(&random[32..]),
            String::from_utf8_lossy(&machine_id),
            boot.trim()
        );
    }
}
