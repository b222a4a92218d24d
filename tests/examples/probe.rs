#![allow(missing_docs, clippy::all, clippy::unwrap_used)]
use spore_builder::{Host, Manifest};
use spore_tests::{host, sandbox::*};
use std::io::BufRead;
use std::time::Instant;
struct Show;
impl spore_builder::observe::Observer for Show {
    fn event(&mut self, e: spore_builder::observe::BuildEvent<'_>) {
        eprintln!("{e:?}");
    }
}
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let t = Instant::now();
    let h = Host::open(dir.as_ref(), &host::cache(), None).unwrap();
    let floor = std::env::args().nth(2).unwrap();
    let m = std::env::args().nth(3).unwrap_or_else(|| format!(r#"{{"base":"busybox","name":"t","builderMemoryMB":256,"runtimeMemoryMB":{floor},"steps":[{{"type":"run","args":{{"commands":["echo hi"]}}}}]}}"#));
    let m = Manifest::parse(m.as_bytes(), &host::limits()).unwrap();
    let b = spore_builder::build(&h, &m, &mut Show);
    eprintln!("{:?}", t.elapsed());
    let b = match b {
        Ok(b) => b,
        Err(e) => {
            eprintln!("ERR {e}\n{e:?}");
            return;
        }
    };
    eprintln!(
        "build {:?} finalize {:?} mem {}",
        b.build, b.finalize, b.memory_bytes
    );
    let t = Instant::now();
    let mut s = Sandbox::fork(h.store(), &b.checkpoint);
    eprintln!("fork {:?} {:?}", t.elapsed(), s.times());
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let t = Instant::now();
        if let Some(n) = line.strip_prefix("resize ") {
            let (g, a) = s.parts();
            eprintln!("{:?}", g.resize(a, n.parse().unwrap()));
        } else if let Some(n) = line.strip_prefix("put ") {
            s.put("/run/put", vec![7u8; n.parse::<usize>().unwrap()]);
        } else if line == "fork" {
            s = Sandbox::fork(h.store(), &b.checkpoint);
        } else if line == "status" {
            eprintln!("{:?}", s.agent.status());
        } else {
            let o = s.agent.exec_collect(&shell(&line), b"");
            match o {
                Ok(o) => eprintln!(
                    "{:?}\n{}\n{}",
                    o.outcome,
                    String::from_utf8_lossy(&o.stdout),
                    String::from_utf8_lossy(&o.stderr)
                ),
                Err(e) => {
                    let e = s.explain(e);
                    eprintln!("ERR {e:?}")
                }
            }
        }
        eprintln!("-- {line}: {:?} rss {}", t.elapsed(), s.resident_bytes() >> 20);
    }
}
