//! Certificates for one test, made by openssl: a CA and one leaf that serves both sides.

use crate::osuser;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Debug)]
pub struct Certs {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Certs {
    /// Makes them in `dir`, readable by the servers' user.
    pub fn make(dir: &Path) -> Self {
        let at = |name: &str| dir.join(name);
        let certs = Self { ca: at("ca.crt"), cert: at("leaf.crt"), key: at("leaf.key") };
        let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n\
                          extendedKeyUsage=serverAuth,clientAuth\n\
                          basicConstraints=CA:FALSE\n";
        std::fs::write(at("leaf.ext"), extensions).expect("a file can be written");
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        openssl(dir, |c| {
            c.args(["req", "-x509", "-days", "2", "-subj", "/CN=hathi test CA"]).args(key);
            c.args(["-keyout", "ca.key", "-out", "ca.crt"]);
        });
        openssl(dir, |c| {
            c.args(["req", "-new", "-subj", "/CN=root"]).args(key);
            c.args(["-keyout", "leaf.key", "-out", "leaf.csr"]);
        });
        openssl(dir, |c| {
            c.args(["x509", "-req", "-in", "leaf.csr", "-CA", "ca.crt", "-CAkey", "ca.key"]);
            c.args(["-CAcreateserial", "-days", "2", "-extfile", "leaf.ext", "-out", "leaf.crt"]);
        });
        for file in [&certs.ca, &certs.cert, &certs.key] {
            osuser::give(file);
        }
        certs
    }
}

impl Certs {
    /// The key once more, locked with this password, in a file of its own.
    pub fn locked_key(&self, password: &str) -> PathBuf {
        let dir = self.key.parent().expect("a directory");
        openssl(dir, |c| {
            c.args(["pkcs8", "-topk8", "-in", "leaf.key", "-out", "locked.key"]);
            c.args(["-passout", &format!("pass:{password}")]);
        });
        let locked = dir.join("locked.key");
        osuser::give(&locked);
        locked
    }
}

fn openssl(dir: &Path, with: impl Fn(&mut Command)) {
    let mut command = Command::new("openssl");
    with(&mut command);
    let out = command.current_dir(dir).output().expect("openssl runs (scripts/setup installs it)");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}
