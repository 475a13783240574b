//! A whole Telecine on this machine: `telecine up` over a folder of its own, and the CLI pointed at it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary;

/// How long anything on one machine may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How long agents have to clean up after their workers when a test is over.
const LAST_PATIENCE: Duration = Duration::from_secs(15);

/// A running `telecine up`.
pub struct Up {
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
    api: u16,
    manager: u16,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

impl Up {
    /// Starts over an empty folder and waits until it is ready. `arguments` follow `telecine up`.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("telecine-e2e-").tempdir().expect("a temporary folder");
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut up = Self { folder, arguments, child: None, api: free_port(), manager: free_port() };
        up.restart();
        up
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder beside the data folder, made when it is not there.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).expect("a folder in the temporary folder");
        path
    }

    /// Where the API listens.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api)
    }

    /// The API's port.
    pub fn api_port(&self) -> u16 {
        self.api
    }

    /// The manager's port.
    pub fn manager_port(&self) -> u16 {
        self.manager
    }

    /// Starts `telecine up` again over the same folder and ports.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("up.log"));
        let log = log.expect("the log opens");
        let child = Command::new(binary("telecine"))
            .args(["up", "--data"])
            .arg(self.data())
            .args(["--listen", &format!("127.0.0.1:{}", self.api)])
            .args(["--manager-listen", &format!("127.0.0.1:{}", self.manager)])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log opens twice"))
            .stderr(log)
            .spawn()
            .expect("the binary runs");
        self.child = Some(child);
        self.until("`up` is ready", |up| up.try_cli(&["instances", "list", "-o", "json"]).status.success());
    }

    /// What `up` has written so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default()
    }

    /// Ends `up` by SIGKILL, leaving its agents.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
    }

    /// The process of `up` itself.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&self) -> Process {
        let child = self.child.as_ref().expect("it runs");
        Process { pid: i32::try_from(child.id()).expect("a pid fits"), command: "up".to_owned() }
    }

    /// Runs the CLI against this `up`.
    ///
    /// # Panics
    /// When the binary does not run.
    pub fn try_cli(&self, arguments: &[&str]) -> Output {
        self.try_cli_with(&[], arguments)
    }

    fn try_cli_with(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
        Command::new(binary("telecine"))
            .envs(environment.iter().copied())
            .args(arguments)
            .arg("--data")
            .arg(self.data())
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs")
    }

    /// Runs the CLI, which must succeed, and reads its JSON.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub fn cli(&self, arguments: &[&str]) -> Value {
        self.cli_with(&[], arguments)
    }

    /// The same with more in the environment, for what must not be an argument.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub fn cli_with(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        let output = self.try_cli_with(environment, &arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "telecine {}: {}\n{out}{err}", arguments.join(" "), output.status);
        serde_json::from_str(&out)
            .unwrap_or_else(|error| panic!("telecine {}: {error}: {out}", arguments.join(" ")))
    }

    /// Waits until `holds`, looking every 50 ms.
    ///
    /// # Panics
    /// When `PATIENCE` runs out; shows the end of `up`'s log.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}", tail(&self.log(), 60));
            pause(Duration::from_millis(50));
        }
    }

    /// Registers a local folder as a store and proves its permissions; returns its id.
    ///
    /// # Panics
    /// When the store is refused.
    pub fn local_store(&self, name: &str, folder: &Path) -> String {
        let path = folder.to_str().expect("test folders are UTF-8");
        let store = self.cli(&["stores", "create", name, "--folder", path]);
        let id = text(&store, "/id");
        self.cli(&["stores", "validate", &id]);
        id
    }

    /// Publishes version 1.0.0 of a service as stable; `launch` are flags such as `--plain --image REF --argument sh`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn publish(&self, service: &str, memory: &str, launch: &[&str]) {
        let fixed = [
            "engines",
            "publish",
            service,
            "--version",
            "1.0.0",
            "--stable",
            "--cpu",
            "0.1",
            "--memory",
            memory,
        ];
        self.cli(&fixed.iter().chain(launch).copied().collect::<Vec<_>>());
    }

    /// Waits for a job to be over and returns it.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn finished(&self, job: &str) -> Value {
        let mut last = Value::Null;
        self.until(&format!("{job} is over"), |up| {
            let output = up.try_cli(&["jobs", "get", job, "-o", "json"]);
            last = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
            matches!(last["state"].as_str(), Some("succeeded" | "failed" | "canceled" | "expired"))
        });
        last
    }
}

impl Drop for Up {
    /// Ends everything, jobs of a failed test too: workers first, so that their agents clean up after them.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A child that has ended already is as good.
            child.kill().ok();
            child.wait().ok();
        }
        for worker in self.processes("worker") {
            worker.signal(rustix::process::Signal::CONT);
            worker.signal(rustix::process::Signal::KILL);
        }
        let agents = self.processes("agent");
        agents.iter().for_each(|agent| agent.signal(rustix::process::Signal::TERM));
        let start = Instant::now();
        while agents.iter().any(Process::is_alive) && start.elapsed() < LAST_PATIENCE {
            pause(Duration::from_millis(20));
        }
        agents.iter().for_each(|agent| agent.signal(rustix::process::Signal::KILL));
    }
}

/// The string at a JSON pointer.
///
/// # Panics
/// When there is none.
pub fn text(value: &Value, pointer: &str) -> String {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no string at {pointer} in {value}")).to_owned()
}

/// Sleeps; end-to-end tests run in real time.
#[expect(clippy::disallowed_methods, reason = "nothing here runs in simulated time")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A process of this system, found by what it was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its command line.
    pub command: String,
}

impl Process {
    /// Sends it a signal; one that is gone is no error.
    ///
    /// # Panics
    /// When the signal is refused for another reason.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid).expect("a pid of /proc is positive");
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => panic!("{self:?}: {error}"),
        }
    }

    /// The process that started it, while that lives.
    ///
    /// # Panics
    /// When it is gone.
    pub fn parent(&self) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the process lives");
        let fields = status.rsplit(')').next().unwrap_or_default().split_whitespace();
        let pid = fields.skip(1).find_map(|field| field.parse().ok()).expect("a process has a parent");
        Self { pid, command: format!("parent of {}", self.pid) }
    }

    /// Whether it still runs (a zombie does not).
    pub fn is_alive(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        status
            .rsplit(')')
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
    }
}

impl Up {
    /// Processes of this system whose first argument is `verb` (`agent`, `worker`), by the data folder in their command
    /// line.
    ///
    /// # Panics
    /// When /proc cannot be read.
    pub fn processes(&self, verb: &str) -> Vec<Process> {
        let data = self.data().to_str().expect("test folders are UTF-8").to_owned();
        let entries = std::fs::read_dir("/proc").expect("/proc is there").flatten();
        let mut found: Vec<Process> = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter_map(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let words: Vec<String> = line
                    .split(|&byte| byte == 0)
                    .map(|word| String::from_utf8_lossy(word).into_owned())
                    .collect();
                let ours = words.get(1).is_some_and(|word| word == verb)
                    && words.iter().any(|w| w.starts_with(&data));
                ours.then(|| Process { pid, command: words.join(" ") })
            })
            .filter(Process::is_alive)
            .collect();
        found.sort_by_key(|process| process.pid);
        found
    }
}
