//! Runs inside a guest: `stall` takes the processor it runs on, before everything else there, and never gives it
//! back. To be told from a guest that is slow there is only a limit of time.

use std::ffi::c_int;

unsafe extern "C" {
    fn sched_setscheduler(pid: c_int, policy: c_int, priority: *const c_int) -> c_int;
}

const SCHED_FIFO: c_int = 1;

fn main() {
    // Real-time threads may not take all of it unless they are told that they may.
    std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1").expect("the limit can be lifted");
    // SAFETY: `struct sched_param` is one `int`.
    assert_eq!(unsafe { sched_setscheduler(0, SCHED_FIFO, &raw const *&99) }, 0);
    loop {
        std::hint::spin_loop();
    }
}
