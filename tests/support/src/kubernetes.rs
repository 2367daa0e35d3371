//! Real Kubernetes API servers on loopback, on an etcd of their own: Debian's sources, built by
//! scripts/setup. There is no kubelet and no controller: Pods are objects that a test makes.

use crate::certs::Certs;
use crate::etcd::{Etcd, EtcdOptions, EtcdVersion, cache_dir};
use crate::leftovers::{self, Owner};
use crate::ports::free_ports;
use crate::process::{Process, tail};
use crate::proxy::Proxy;
use crate::servers::{Seat, Seats, StoreServers, seated};
use crate::{osuser, wait};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Everything is permitted to whoever shows this.
pub const ADMIN: &str = "hathi-test-admin";
/// Only what its Roles say.
pub const MEMBER: &str = "hathi-test-member";

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces";

/// How to start them.
#[derive(Clone, Debug)]
pub struct KubernetesOptions {
    /// API servers, on one etcd.
    pub servers: usize,
    /// Clients reach each of them through a proxy that can lose answers.
    pub proxied: bool,
}

impl Default for KubernetesOptions {
    fn default() -> Self {
        Self { servers: 1, proxied: false }
    }
}

/// API servers of their own, ended and removed when dropped.
pub struct Kubernetes {
    options: KubernetesOptions,
    ports: Vec<u16>,
    /// The API servers; their etcd is beside them.
    seats: Seats,
    pub etcd: Etcd,
    pub certs: Certs,
    dir: tempfile::TempDir,
    _owner: Owner,
}

impl Kubernetes {
    /// Starts the servers and waits until they serve.
    pub async fn start(options: KubernetesOptions) -> Self {
        leftovers::clean("hathi-kubernetes-");
        let dir = osuser::server_dir("hathi-kubernetes-");
        let owner = Owner::of(dir.path()).expect("the lock of the run's directory");
        let certs = Certs::make(dir.path());
        let at = |name: &str| dir.path().join(name);
        let account = Command::new("openssl")
            .args(["genrsa", "-out", "sa.key", "2048"])
            .current_dir(dir.path())
            .output()
            .expect("openssl runs (scripts/setup installs it)");
        assert!(account.status.success(), "openssl genrsa");
        let users = format!("{ADMIN},admin,1,\"system:masters\"\n{MEMBER},member,2\n");
        std::fs::write(at("tokens.csv"), users).expect("a file can be written");
        for file in [at("sa.key"), at("tokens.csv")] {
            osuser::give(&file);
        }
        let mut seats = Seats::default();
        let ports = free_ports(options.servers);
        for port in &ports {
            let proxy = options.proxied.then(|| Proxy::start(*port));
            seats.0.push(Seat { process: None, proxy });
        }
        let etcd = Etcd::start_with(EtcdOptions::new(EtcdVersion::V35, 1)).await;
        let mut kubernetes = Self { options, ports, seats, etcd, certs, dir, _owner: owner };
        kubernetes.write_access(ADMIN);
        kubernetes.start_all();
        kubernetes.ready().await;
        if kubernetes.options.servers > 1 {
            kubernetes.announce();
        }
        kubernetes
    }

    /// Of what clients connect to: the proxies if there are some.
    pub fn urls(&self) -> Vec<String> {
        let each = self.ports.iter().zip(&self.seats.0);
        each.map(|(port, seat)| seat.proxy.as_ref().map_or(*port, |proxy| proxy.port))
            .map(|port| format!("https://127.0.0.1:{port}"))
            .collect()
    }

    pub fn token_file(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    /// For agents that run in no Pod; its context is `golden`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Writes the token's file and the kubeconfig for this user.
    pub fn write_access(&self, token: &str) {
        self.write_token(token);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "golden",
            "clusters": [{"name": "golden", "cluster": {
                "server": self.urls()[0], "certificate-authority": self.certs.ca,
            }}],
            "users": [{"name": "golden", "user": {"token": token}}],
            "contexts": [{"name": "golden", "context": {"cluster": "golden", "user": "golden"}}],
        });
        std::fs::write(self.kubeconfig(), config.to_string()).expect("a file can be written");
        osuser::give(&self.kubeconfig());
    }

    /// Puts the kubeconfig where an agent with this home looks.
    pub fn lend_access(&self, home: &Path) {
        let at = home.join(".kube");
        std::fs::create_dir(&at).expect("a directory");
        std::fs::copy(self.kubeconfig(), at.join("config")).expect("the kubeconfig");
        osuser::give(&at);
        osuser::give(&at.join("config"));
    }

    /// As a kubelet does when a token rotates.
    pub fn write_token(&self, token: &str) {
        let file = self.token_file();
        std::fs::write(&file, token).expect("a file can be written");
        osuser::give(&file);
    }

    /// One request to the first API server that runs, past the proxies, as the administrator.
    ///
    /// # Errors
    /// No answer, or none of success: its text.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let content = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let which = (0..self.ports.len()).find(|which| self.seats.runs(*which)).unwrap_or(0);
        self.ask(which, method, path, content, body)
    }

    fn ask(
        &self,
        which: usize,
        method: &str,
        path: &str,
        content: &str,
        body: Option<&Value>,
    ) -> Result<Value, String> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "5", "-w", "\n%{http_code}", "-X", method]);
        command.arg("--cacert").arg(&self.certs.ca);
        command.args(["-H", &format!("Authorization: Bearer {ADMIN}")]);
        if let Some(body) = body {
            command.args(["-H", &format!("Content-Type: {content}"), "-d", &body.to_string()]);
        }
        command.arg(format!("https://127.0.0.1:{}{path}", self.ports[which]));
        let out = command.output().expect("curl runs (scripts/setup installs it)");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (text, code) = text.rsplit_once('\n').unwrap_or(("", ""));
        match code.trim().parse::<u16>() {
            Ok(200..=299) => Ok(serde_json::from_str(text).unwrap_or(Value::from(text))),
            Ok(_) | Err(_) => Err(format!("{code} {text}{}", String::from_utf8_lossy(&out.stderr))),
        }
    }

    /// What [`MEMBER`] may do in a namespace from now on, as resources and their verbs.
    pub fn allow(&self, namespace: &str, rules: &[(&str, &str)]) {
        let words = |verbs: &str| verbs.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let each = rules.iter().map(|(resource, verbs)| {
            json!({"apiGroups": [""], "resources": [resource], "verbs": words(verbs)})
        });
        let role = json!({"metadata": {"name": "member"}, "rules": each.collect::<Vec<_>>()});
        let roles = format!("{RBAC}/{namespace}/roles");
        if self.api("PUT", &format!("{roles}/member"), Some(&role)).is_err() {
            self.api("POST", &roles, Some(&role)).expect("a Role");
        }
        self.bind(namespace);
        for (resource, verbs) in rules {
            let verbs = words(verbs);
            for verb in ["create", "get", "list", "patch", "watch"] {
                let may = verbs.iter().any(|known| known == verb || known == "*");
                self.settled(namespace, resource, verb, may);
            }
        }
    }

    /// That counts (again).
    pub fn bind(&self, namespace: &str) {
        let group = "rbac.authorization.k8s.io";
        let binding = json!({
            "metadata": {"name": "member"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "member"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "member"}],
        });
        let bindings = format!("{RBAC}/{namespace}/rolebindings");
        if let Err(why) = self.api("POST", &bindings, Some(&binding)) {
            assert!(why.contains("AlreadyExists"), "a RoleBinding: {why}");
        }
    }

    /// It may nothing any more.
    pub fn unbind(&self, namespace: &str) {
        let binding = format!("{RBAC}/{namespace}/rolebindings/member");
        self.api("DELETE", &binding, None).expect("it was bound");
        self.settled(namespace, "pods", "list", false);
    }

    /// The API server learns of its own Roles a moment later.
    fn settled(&self, namespace: &str, resource: &str, verb: &str, may: bool) {
        let review = json!({"spec": {"user": "member", "resourceAttributes": {
            "namespace": namespace, "resource": resource, "verb": verb,
        }}});
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let started = std::time::Instant::now();
        loop {
            let said = self.api("POST", path, Some(&review)).expect("a review");
            if said["status"]["allowed"].as_bool() == Some(may) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{verb} {resource}: not {may}");
            std::thread::sleep(wait::POLL);
        }
    }

    /// Makes a namespace, if it is not there.
    pub fn make_namespace(&self, name: &str) {
        let namespace = json!({"metadata": {"name": name}});
        if let Err(why) = self.api("POST", "/api/v1/namespaces", Some(&namespace)) {
            assert!(why.contains("AlreadyExists"), "a namespace: {why}");
        }
    }

    /// Makes a Pod with these labels, if it is not there; nothing runs in it. Its address is one that
    /// nobody has.
    pub fn make_pod(&self, namespace: &str, name: &str, labels: &Value) {
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let pod = json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "x", "image": "x"}]},
        });
        if let Err(why) = self.api("POST", &pods, Some(&pod)) {
            assert!(why.contains("AlreadyExists"), "a Pod: {why}");
        }
        let last = name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
        let ip = format!("10.0.{}.{}", last / 200 % 200, last % 200 + 11);
        let status = json!({"status": {"podIP": ip, "phase": "Running"}});
        let path = format!("{pods}/{name}/status");
        self.api("PATCH", &path, Some(&status)).expect("a Pod's status");
    }

    /// Says in the service's Endpoints that all API servers are there. They refuse loopback addresses
    /// from a client, but not from their own store.
    pub fn announce(&self) {
        let subset = |url: String| {
            let port = url.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
            json!({"addresses": [{"ip": "127.0.0.1"}], "ports": [{"name": "https", "port": port}]})
        };
        let subsets: Vec<Value> = self.urls().into_iter().map(subset).collect();
        let endpoints = json!({
            "kind": "Endpoints", "apiVersion": "v1",
            "metadata": {"name": "kubernetes", "namespace": "default", "uid": "1",
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "subsets": subsets,
        });
        let key = "/registry/services/endpoints/default/kubernetes";
        self.etcdctl(&["put", key, &endpoints.to_string()]);
    }

    /// The revisions that a watch could resume from are gone.
    pub fn forget_history(&self) {
        let now = self.etcdctl(&["get", "/", "-w", "json"]);
        let now = serde_json::from_str::<Value>(&now).expect("etcdctl says JSON");
        let revision = now["header"]["revision"].as_u64().expect("etcd has a revision");
        self.etcdctl(&["compact", &revision.to_string()]);
    }

    fn etcdctl(&self, args: &[&str]) -> String {
        let out = Command::new(cache_dir().join("trixie/usr/bin/etcdctl"))
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.etcd.hosts()])
            .args(args)
            .output()
            .expect("etcdctl runs (scripts/setup unpacks it)");
        assert!(out.status.success(), "etcdctl: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn log(&self, which: usize) -> PathBuf {
        self.dir.path().join(format!("api{which}.log"))
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

seated!(Kubernetes);

impl StoreServers for Kubernetes {
    fn start_all(&mut self) {
        let binary = cache_dir().join("kube/kube-apiserver");
        assert!(binary.exists(), "{} is not there: run scripts/setup", binary.display());
        self.etcd.start_all();
        for which in 0..self.ports.len() {
            if self.seats.runs(which) {
                continue;
            }
            let dir = self.dir.path();
            let at = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
            let mut command = Command::new(&binary);
            command.env_clear().env("HOME", dir).current_dir(dir);
            command.arg(format!("--etcd-servers=http://{}", self.etcd.hosts()));
            command.args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"]);
            command.arg(format!("--secure-port={}", self.ports[which]));
            command.arg(at("tls-cert-file", &self.certs.cert));
            command.arg(at("tls-private-key-file", &self.certs.key));
            command.arg(at("client-ca-file", &self.certs.ca));
            command.arg(at("cert-dir", dir));
            command.arg(at("token-auth-file", &dir.join("tokens.csv")));
            command.arg("--authorization-mode=RBAC");
            command.arg("--service-account-issuer=https://kubernetes.default.svc");
            command.arg(at("service-account-key-file", &dir.join("sa.key")));
            command.arg(at("service-account-signing-key-file", &dir.join("sa.key")));
            command.args(["--service-cluster-ip-range=10.96.0.0/16", "--event-ttl=5m"]);
            command.args(["--disable-admission-plugins=ServiceAccount"]);
            command.args(["--endpoint-reconciler-type=none", "--max-requests-inflight=100"]);
            let log = self.log(which);
            self.seats.0[which].process = Some(Process::start(command, &log));
        }
    }

    async fn ready(&self) {
        self.etcd.ready().await;
        for which in (0..self.ports.len()).filter(|which| self.seats.runs(*which)) {
            let serves = wait::until("the API server serves", Duration::from_secs(90), || async {
                tokio::task::block_in_place(|| {
                    self.ask(which, "GET", "/readyz", "", None)?;
                    // Made a moment after it says that it is ready.
                    self.ask(which, "GET", "/api/v1/namespaces/default", "", None).map(drop)
                })
            });
            if let Err(e) = serves.await {
                panic!("{e}\n{}", tail(&self.log(which), 20));
            }
        }
    }

    /// All are equal; it is the first.
    async fn leader(&self) -> Option<usize> {
        (0..self.ports.len()).find(|which| self.seats.runs(*which))
    }

    fn pause_whole(&self) {
        self.seats.pause();
        self.etcd.pause();
    }

    fn resume_whole(&self) {
        self.etcd.resume();
        self.seats.resume();
    }

    fn kill_whole(&mut self) {
        self.seats.kill_all();
        self.etcd.kill_all();
    }

    /// The API servers go on, and have nobody behind them.
    fn kill_majority(&mut self) -> bool {
        self.etcd.kill_all();
        true
    }
}
