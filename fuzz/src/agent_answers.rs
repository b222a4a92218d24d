//! Answers of an agent that is not ours: a guest can put any program in its place.

use std::io::{self, Read, Write};

use spore_protocol::{AgentClient, ClientError, ExecEvent, ExecRequest, TtySize, connect_handshake};

use crate::input::Input;

/// What the guest says, and nothing after it.
struct Guest<'a>(&'a [u8]);

impl Read for Guest<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Guest<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let asked = input.u8();
    let mut said = input.take(data.len());
    if asked == 0xFF {
        let _ = connect_handshake(&mut Guest(said), 1);
        return;
    }
    let mut hello = Vec::new();
    if asked & 0x80 == 0 {
        // A good hello first, so that what comes after it is looked at: the one we send ourselves.
        let mut echo = Echo(&mut hello);
        let _ = AgentClient::new(&mut echo, "fuzz").handshake();
    }
    hello.extend_from_slice(said);
    said = &hello;
    let mut agent = AgentClient::new(Guest(said), "fuzz");
    for question in [asked, asked >> 3] {
        let _ = match question % 10 {
            0 => agent.status().map(drop),
            1 => agent.exec_collect(&ExecRequest::new(["x"]), b"in").map(drop),
            2 => agent.read_file("/x", &mut io::sink()).map(drop),
            3 => agent.write_file("/x", None, &mut &[0; 100][..]).map(drop),
            4 => agent.list_dir("/").map(drop),
            5 => agent.memory(true).map(drop),
            6 => agent.get_defaults().map(drop),
            7 => agent.stat("/x").map(drop),
            8 => at_a_terminal(&mut agent),
            _ => agent.sleep(),
        };
    }
}

/// As an interactive caller has it: to the end of the command, or of what the guest says.
fn at_a_terminal(agent: &mut AgentClient<Guest<'_>>) -> Result<(), ClientError> {
    agent.start_exec(&ExecRequest {
        tty: Some(TtySize { rows: 24, cols: 80 }),
        ..ExecRequest::new(["x"])
    })?;
    while !matches!(agent.next_event()?, ExecEvent::Exited(_)) {}
    Ok(())
}

/// Keeps what is written to it.
struct Echo<'a>(&'a mut Vec<u8>);

impl Read for Echo<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

impl Write for Echo<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
