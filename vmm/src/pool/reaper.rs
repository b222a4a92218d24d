//! Taking guests apart off the path.
//!
//! A killed process gives its memory back at once; KVM's part takes tens of milliseconds, and somebody must wait for it
//! and remove the directory.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::guest::{Guest, Shell, Template};

enum Gone {
    Guest(Box<Guest>),
    Shell(Box<Shell>),
    Template(Arc<Mutex<Template>>),
    /// Somebody waits for all that came before.
    Tell(Sender<()>),
}

/// A thread that drops what it is given.
pub(super) struct Reaper(Mutex<Sender<Gone>>);

impl Reaper {
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        std::thread::Builder::new()
            .name("reap".into())
            .spawn(move || reap(&receiver))?;
        Ok(Self(Mutex::new(sender)))
    }

    pub fn guest(&self, guest: Guest) {
        guest.kill();
        self.send(Gone::Guest(Box::new(guest)));
    }

    pub fn shell(&self, shell: Shell) {
        shell.kill();
        self.send(Gone::Shell(Box::new(shell)));
    }

    pub fn template(&self, template: Arc<Mutex<Template>>) {
        self.send(Gone::Template(template));
    }

    /// Waits until all that was given is gone.
    pub fn settle(&self) {
        let (sender, receiver) = channel();
        self.send(Gone::Tell(sender));
        // An error means that the thread has ended, and has dropped everything.
        let _ = receiver.recv();
    }

    fn send(&self, gone: Gone) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // If the thread were gone, what is sent is dropped here.
        let _ = sender.send(gone);
    }
}

fn reap(receiver: &Receiver<Gone>) {
    while let Ok(gone) = receiver.recv() {
        match gone {
            Gone::Guest(guest) => drop(guest),
            Gone::Shell(shell) => drop(shell),
            Gone::Template(template) => drop(template),
            Gone::Tell(sender) => {
                // Nobody waits any more if this fails.
                let _ = sender.send(());
            }
        }
    }
}
