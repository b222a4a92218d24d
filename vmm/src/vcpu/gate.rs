//! Keeping vCPUs out of the guest: for a moment (a memslot is being replaced) or for good (pause).
//!
//! A vCPU thread passes the gate before every `KVM_RUN`. Whoever closes the gate sets
//! `immediate_exit` in each vCPU's `kvm_run` page and sends its thread a signal: the flag catches a
//! thread that is about to enter, the signal one that is inside (`Documentation/virt/kvm/api.rst`,
//! 5, `immediate_exit`).

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;

/// What the threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Wait: the machine was never let go.
    Closed,
    Run,
    /// Wait: somebody holds the gate.
    Hold,
    Stop,
}

/// What a vCPU thread is told at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Enter the guest.
    Enter,
    /// Leave the loop.
    Stop,
}

/// How to get one vCPU out of the guest.
struct Kick {
    /// `immediate_exit` in the vCPU's `kvm_run` page.
    immediate_exit: *const AtomicU8,
    /// The thread, once it has come to the gate.
    thread: Option<libc::pthread_t>,
}

// SAFETY: the pointer is only dereferenced while the vCPU is registered, which its thread ends
// (`unregister`) before the mapping behind it goes away; the access is atomic.
unsafe impl Send for Kick {}

impl Kick {
    fn set_immediate_exit(&self, value: u8) {
        if !self.immediate_exit.is_null() {
            // SAFETY: registered, so the `kvm_run` mapping behind the pointer is alive; the kernel
            // only reads the byte.
            unsafe { &*self.immediate_exit }.store(value, Ordering::SeqCst);
        }
    }
}

struct Inner {
    order: Order,
    holds: u32,
    kicks: Vec<Kick>,
}

/// One VM's gate.
pub struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Whether vCPU `i` is in `KVM_RUN` or about to be.
    inside: Vec<AtomicBool>,
    /// Copy of "order is Run", read on the fast path.
    open: AtomicBool,
}

/// Keeps the vCPUs out until dropped.
pub struct Held<'a>(&'a Gate);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.holds -= 1;
        if inner.holds == 0 && inner.order == Order::Hold {
            self.0.reopen(&mut inner);
        }
        drop(inner);
        self.0.changed.notify_all();
    }
}

/// The signal that kicks; its handler does nothing.
pub(crate) fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Installs the empty handler for the kick signal, without SA_RESTART. Call once per process.
///
/// # Errors
/// What `sigaction(2)` reports.
pub fn install_kick_handler() -> std::io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe (it does nothing).
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(kick_signal(), &action, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

impl Gate {
    /// A closed gate for `vcpus` vCPUs, none of which is running.
    pub fn new(vcpus: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                order: Order::Closed,
                holds: 0,
                kicks: Vec::new(),
            }),
            changed: Condvar::new(),
            inside: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            open: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the gate know the vCPUs it guards, in order, before their threads start. It stays closed until
    /// [`Gate::open`].
    pub fn arm<'a>(&self, vcpus: impl Iterator<Item = &'a mut VcpuFd>) {
        let mut inner = self.lock();
        inner.order = Order::Closed;
        self.open.store(false, Ordering::SeqCst);
        inner.kicks = vcpus
            .map(|vcpu| Kick {
                immediate_exit: (&raw const vcpu.get_kvm_run().immediate_exit).cast::<AtomicU8>(),
                thread: None,
            })
            .collect();
    }

    /// Opens a gate that was armed. One that is held opens when it is let go.
    pub fn open(&self) {
        let mut inner = self.lock();
        if inner.order != Order::Closed {
            return;
        }
        if inner.holds == 0 {
            self.reopen(&mut inner);
        } else {
            inner.order = Order::Hold;
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Lets the vCPUs run. Whoever closes the gate again needs the lock we are under, so no kick is lost.
    fn reopen(&self, inner: &mut Inner) {
        inner.order = Order::Run;
        for kick in &inner.kicks {
            kick.set_immediate_exit(0);
        }
        self.open.store(true, Ordering::SeqCst);
    }

    /// Called by the thread of vCPU `index` before every `KVM_RUN`.
    pub fn pass(&self, index: usize) -> Pass {
        loop {
            self.inside[index].store(true, Ordering::SeqCst);
            if self.open.load(Ordering::SeqCst) {
                return Pass::Enter;
            }
            self.left(index);
            let mut inner = self.lock();
            loop {
                match inner.order {
                    Order::Run => break,
                    Order::Stop => return Pass::Stop,
                    Order::Hold | Order::Closed => {
                        inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        }
    }

    /// Called by the thread of vCPU `index` after every `KVM_RUN`.
    pub fn left(&self, index: usize) {
        self.inside[index].store(false, Ordering::SeqCst);
        if !self.open.load(Ordering::SeqCst) {
            // Taking the lock orders this wake-up after the waiter's check.
            drop(self.lock());
            self.changed.notify_all();
        }
    }

    /// Called by the thread of vCPU `index` when it starts.
    pub fn register_thread(&self, index: usize) {
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        if let Some(kick) = self.lock().kicks.get_mut(index) {
            kick.thread = Some(thread);
        }
    }

    /// Called by the thread of vCPU `index` before it ends: it is not kicked any more.
    pub fn unregister(&self, index: usize) {
        self.left(index);
        if let Some(kick) = self.lock().kicks.get_mut(index) {
            kick.thread = None;
            kick.immediate_exit = std::ptr::null();
        }
        self.changed.notify_all();
    }

    /// Closes the gate and returns when no vCPU is in the guest. A vCPU thread that works on an
    /// exit counts as outside, so a caller may hold a device's lock.
    pub fn hold(&self) -> Held<'_> {
        let mut inner = self.lock();
        inner.holds += 1;
        if inner.order == Order::Run {
            inner.order = Order::Hold;
        }
        drop(self.drive_out(inner));
        Held(self)
    }

    /// Tells all vCPU threads to leave their loops.
    pub fn stop(&self) {
        let mut inner = self.lock();
        inner.order = Order::Stop;
        drop(self.drive_out(inner));
        self.changed.notify_all();
    }

    fn drive_out<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.open.store(false, Ordering::SeqCst);
        for (index, kick) in inner.kicks.iter().enumerate() {
            kick.set_immediate_exit(1);
            if let Some(thread) = kick.thread
                && self.inside[index].load(Ordering::SeqCst)
            {
                // SAFETY: the thread is registered and unregisters, under this lock, before it ends.
                unsafe { libc::pthread_kill(thread, kick_signal()) };
            }
        }
        while self.inside.iter().any(|inside| inside.load(Ordering::SeqCst)) {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        self.changed.notify_all();
        inner
    }
}
