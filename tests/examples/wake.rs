//! How long forks take to wake and to become who they should be:
//! `wake DIRECTORY [FORKS] [AT_ONCE] [VCPUS]`, with SPORE_VM and SPORE_CACHE as for the tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "for a person at a terminal"
)]

use std::time::Duration;

use spore_builder::observe::{BuildEvent, Observer};
use spore_builder::{Host, Manifest};
use spore_tests::host;
use spore_vmm::guest::Guest;

struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: BuildEvent<'_>) {}
}

fn say(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{what:16} p50 {:7.2} ms   p90 {:7.2} ms   max {:7.2} ms",
        at(50),
        at(90),
        at(100)
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let directory = arguments
        .first()
        .expect("usage: wake DIRECTORY [FORKS] [AT_ONCE]");
    let number = |at: usize, or: usize| arguments.get(at).map_or(or, |text| text.parse().unwrap());
    let (forks, at_once) = (number(1, 30), number(2, 1));
    let cache = std::env::var_os("SPORE_CACHE").expect("SPORE_CACHE is set");
    let host = Host::open(directory.as_ref(), cache.as_ref(), None).unwrap();
    let manifest = r#"{"base":"busybox","name":"wake","builderMemoryMB":256,"runtimeMemoryMB":256,
        "steps":[{"type":"run","args":{"commands":["true"]}}]}"#;
    let manifest = Manifest::parse(manifest.as_bytes(), &host::limits()).unwrap();
    let built = spore_builder::build(&host, &manifest, &mut Silent).unwrap();
    let mut times = Vec::new();
    while times.len() < forks {
        std::thread::scope(|scope| {
            let forks: Vec<_> = (0..at_once)
                .map(|_| {
                    scope.spawn(|| {
                        let checkpoint = host.store().open_checkpoint(&built.checkpoint).unwrap();
                        let fork = Guest::fork(host.store(), &checkpoint).unwrap();
                        fork.times()
                    })
                })
                .collect();
            times.extend(forks.into_iter().map(|fork| fork.join().unwrap()));
        });
    }
    let all = |of: fn(&spore_vmm::guest::ForkTimes) -> Duration| times.iter().map(of).collect();
    say("asked → prepared", all(|t| t.prepared));
    say("prepared → woke", all(|t| t.woke.unwrap() - t.prepared));
    say("woke → ready", all(|t| t.ready.unwrap() - t.woke.unwrap()));
    say("asked → ready", all(|t| t.ready.unwrap()));
}
