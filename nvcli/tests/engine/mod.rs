//! A Docker engine that a test can end and start again.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test binary takes what it needs"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libtest_mimic::Failed;
use nvnet::Netns;

use crate::common::{ensure, sh, sh_in};

/// An engine of the test's own, in a network namespace of its own, that can be ended and started again.
pub struct Engine {
    pub netns: Netns,
    root: tempfile::TempDir,
    live_restore: bool,
    process: Option<Child>,
}

impl Engine {
    pub fn start(live_restore: bool) -> Result<Self, Failed> {
        let mut engine = Self {
            netns: Netns::nameless("an engine's host")?,
            root: tempfile::tempdir()?,
            live_restore,
            process: None,
        };
        sh_in(&engine.netns, "ip link set lo up")?;
        engine.run()?;
        Ok(engine)
    }

    pub fn run(&mut self) -> Result<(), Failed> {
        let root = self.root.path();
        let log = std::fs::File::create(root.join("log"))?;
        let mut command = Command::new("dockerd");
        command
            .arg("--data-root")
            .arg(root.join("data"))
            .arg("--exec-root")
            .arg(root.join("exec"))
            .arg("--pidfile")
            .arg(root.join("pid"))
            .arg("-H")
            .arg(self.socket())
            .arg(format!("--live-restore={}", self.live_restore))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process = Some(self.netns.run(|| command.spawn())??);
        self.sh("timeout 60 sh -c 'until docker version >/dev/null 2>&1; do :; done'")
            .map(drop)
    }

    /// Ends it as a service manager does.
    pub fn end(&mut self) -> Result<(), Failed> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let pid = nix::unistd::Pid::from_raw(process.id().try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        process.wait()?;
        Ok(())
    }

    /// Ends it as the kernel does when memory is short.
    pub fn kill(&mut self) -> Result<(), Failed> {
        let mut process = self.process.take().ok_or("it does not run")?;
        process.kill()?;
        process.wait()?;
        // Its containerd dies with it. Where nobody clears the dead away, the next engine takes its number for one that runs.
        let number = self.root.path().join("exec/containerd/containerd.pid");
        std::fs::remove_file(number)?;
        Ok(())
    }

    pub fn socket(&self) -> String {
        format!("unix://{}/sock", self.root.path().display())
    }

    pub fn sh(&self, command: &str) -> Result<String, Failed> {
        sh_in(
            &self.netns,
            &format!("export DOCKER_HOST={}\n{command}", self.socket()),
        )
    }

    pub fn nvcli(&self, arguments: &str) -> Result<String, Failed> {
        self.sh(&format!("{} {arguments}", env!("CARGO_BIN_EXE_nvcli")))
    }

    /// A container that serves a document to the host it is on; gives its address.
    pub fn serve(&self) -> Result<String, Failed> {
        self.image()?;
        self.sh("docker run -d --name web nvt:engine /bin/httpd -f -p 80 -h /www")?;
        self.address()
    }

    /// The image nvt:engine, with a document and what serves it.
    pub fn image(&self) -> Result<(), Failed> {
        let root = self.root.path().display();
        self.sh(&format!(
            "set -e
             mkdir -p {root}/image/bin {root}/image/www
             cp $(command -v busybox) {root}/image/bin/busybox
             for applet in sh httpd wget sleep; do ln -s busybox {root}/image/bin/$applet; done
             echo served > {root}/image/www/doc
             tar -C {root}/image -c . | docker import - nvt:engine"
        ))
        .map(drop)
    }

    pub fn address(&self) -> Result<String, Failed> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        Ok(self
            .sh(&format!("docker inspect -f '{format}' web"))?
            .trim()
            .to_owned())
    }

    pub fn fetch(&self, address: &str) -> Result<(), Failed> {
        let to = SocketAddr::new(address.parse()?, 80);
        let answer = self.netns.run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /doc HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        ensure(answer.ends_with("served\n"), answer)
    }

    /// What is attached, a line each; not how many frames were seen of it, which goes on.
    pub fn listed(&self) -> Result<String, Failed> {
        let mut all = String::new();
        for line in self.nvcli("list --output json")?.lines() {
            let mut one: serde_json::Value = serde_json::from_str(line)?;
            if let Some(one) = one.as_object_mut() {
                one.remove("framesSeen");
            }
            all.push_str(&format!("{one}\n"));
        }
        Ok(all)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // With live-restore the containers go on without it.
        if self.process.is_none() {
            let _ = self.run();
        }
        let _ = self.sh("docker rm -f $(docker ps -aq)");
        let _ = self.end();
        // What an engine leaves mounted under its root.
        let _ = sh(&format!(
            "awk -v root={}/ 'index($2, root) == 1 {{print $2}}' /proc/mounts | sort -r | xargs -r umount -l",
            self.root.path().display()
        ));
    }
}
