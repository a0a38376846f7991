// SPDX-License-Identifier: GPL-2.0

//! QMP, the monitor protocol of QEMU's programs. Each message is one line of JSON.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{json, Value};

use crate::lab::assert::limit::Limit;
use crate::lab::assert::timing::within;

/// Time limit for the monitor's reply.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection to the monitor of a QEMU program.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
    /// The part of an incomplete line that has already arrived.
    line: Vec<u8>,
    /// Events that arrived during a call that waited for another message.
    events: Vec<Value>,
}

impl Qmp {
    /// Waits until a monitor listens on `socket`, and connects to it.
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        let mut stream = None;
        within(LIMIT, "the monitor answers", || {
            stream = UnixStream::connect(socket).ok();
            stream.is_some()
        });
        let stream = stream.expect("connected just now");
        let mut qmp = Self {
            answers: BufReader::new(stream.try_clone().expect("the monitor")),
            stream,
            line: Vec::new(),
            events: Vec::new(),
        };
        let greeting = qmp.receive(&mut Limit::new(LIMIT));
        assert!(
            greeting.is_some_and(|message| message.get("QMP").is_some()),
            "not the greeting of a monitor"
        );
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    /// Executes a command. Panics if the command fails. Returns the command's result.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        match self.try_execute(command, arguments) {
            Ok(value) => value,
            Err(why) => panic!("{command}: {why}"),
        }
    }

    /// Executes a command. If the command fails, returns the monitor's error message as the error.
    #[track_caller]
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream, "{request}").map_err(|error| error.to_string())?;
        let mut limit = Limit::new(LIMIT);
        while let Some(mut message) = self.receive(&mut limit) {
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                return Err(error.to_string());
            }
            self.events.push(message);
        }
        Err("no answer".to_owned())
    }

    /// Returns an event called `event` that has already arrived, or waits for one. Other events are
    /// kept for later calls.
    #[track_caller]
    pub fn wait_for(&mut self, event: &str, limit: Duration) -> Value {
        let is_it = |message: &Value| message["event"] == event;
        if let Some(at) = self.events.iter().position(is_it) {
            return self.events.remove(at);
        }
        let mut running = Limit::new(limit);
        while let Some(message) = self.receive(&mut running) {
            if is_it(&message) {
                return message;
            }
            self.events.push(message);
        }
        panic!(
            "no event {event} within {limit:?}; others: {:?}",
            self.events
        );
    }

    /// Returns the next message. Returns `None` at the time limit and at the end of the connection.
    #[track_caller]
    fn receive(&mut self, limit: &mut Limit) -> Option<Value> {
        let moment = Duration::from_millis(100);
        self.stream
            .set_read_timeout(Some(moment))
            .expect("a time limit");
        loop {
            // Bytes of an incomplete message stay in `self.line`.
            match self.answers.read_until(b'\n', &mut self.line) {
                Ok(0) => return None,
                Ok(_) => {
                    let line = std::mem::take(&mut self.line);
                    return Some(serde_json::from_slice(&line).expect("JSON"));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if limit.is_over() {
                        return None;
                    }
                }
                Err(error) => panic!("the monitor: {error}"),
            }
        }
    }
}
