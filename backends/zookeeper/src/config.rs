//! How to reach ZooKeeper: what the section `zookeeper` says.

use std::path::{Path, PathBuf};
use zookeeper_client::{Acl, AuthId, Connector, Permission, TlsOptions};

/// The section `zookeeper`, resolved. (CFG-320 … CFG-322)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZooKeeperConfig {
    /// `host:port` of the servers; asked in any order.
    pub hosts: Vec<String>,
    pub tls: Option<Tls>,
    /// Scheme and credential, shown to the server with every connection: `digest`, `user:password`.
    pub auth: Vec<(String, String)>,
    /// Who may do what with nodes made here; empty: anybody everything. A principal is an x509
    /// subject unless it begins with another `scheme:`. (CFG-424)
    pub acls: Vec<(String, Vec<Right>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// False: the server's certificate may carry another name; its authority is checked all the same.
    pub verify: bool,
    /// PEM files. Without `cacert` the system's roots are trusted. The key may stand in the file of
    /// the certificate.
    pub cacert: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// What the key is locked with, if it is.
    pub key_password: Option<String>,
}

/// What an entry of an access list permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Create,
    Read,
    Write,
    Delete,
    Admin,
    All,
}

/// With one or two servers the client's pauses between rounds over all of them double without bound;
/// with more entries they grow as slowly as the list is long. So each stands in it several times.
const ENTRIES: usize = 12;

impl ZooKeeperConfig {
    /// The list of servers as the client wants it.
    pub(crate) fn servers(&self) -> String {
        let times = if self.hosts.len() < 3 { ENTRIES / self.hosts.len().max(1) } else { 1 };
        vec![self.hosts.join(","); times].join(",")
    }

    /// What goes beyond the list: certificates and credentials. Blocks on the files, which are read
    /// anew for each session.
    ///
    /// # Errors
    /// One line that names the file.
    pub(crate) fn dress(&self, mut connector: Connector) -> Result<Connector, String> {
        for (scheme, credential) in &self.auth {
            connector = connector.with_auth(scheme, credential.as_bytes());
        }
        match &self.tls {
            Some(tls) => Ok(connector.with_tls(tls.options()?)),
            None => Ok(connector),
        }
    }

    /// The access list of what is made here.
    pub(crate) fn access(&self) -> Vec<Acl> {
        let each = self.acls.iter().map(|(principal, rights)| {
            let (scheme, id) = match principal.split_once(':') {
                Some((scheme, id)) if KNOWN_SCHEMES.contains(&scheme) => (scheme, id),
                Some(_) | None => ("x509", principal.as_str()),
            };
            let rights =
                rights.iter().fold(Permission::NONE, |all, right| all | right.permission());
            Acl::new(rights, AuthId::new(scheme, id))
        });
        each.collect()
    }
}

/// A subject may hold colons itself, so only these are taken for a scheme.
const KNOWN_SCHEMES: [&str; 6] = ["world", "auth", "digest", "ip", "x509", "sasl"];

impl Right {
    fn permission(self) -> Permission {
        match self {
            Self::Create => Permission::CREATE,
            Self::Read => Permission::READ,
            Self::Write => Permission::WRITE,
            Self::Delete => Permission::DELETE,
            Self::Admin => Permission::ADMIN,
            Self::All => Permission::ALL,
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|why| format!("{}: {why}", path.display()))
}

impl Tls {
    fn options(&self) -> Result<TlsOptions, String> {
        let roots = match &self.cacert {
            Some(path) => path.clone(),
            None => {
                let found = hathi_keyfile::trust::SYSTEM_ROOTS
                    .map(PathBuf::from)
                    .into_iter()
                    .find(|path| path.exists());
                found.ok_or("this machine has no list of roots; give cacert")?
            }
        };
        let unusable =
            |path: &Path, why: zookeeper_client::Error| format!("{}: {why}", path.display());
        let mut options =
            TlsOptions::new().with_pem_ca(&read(&roots)?).map_err(|why| unusable(&roots, why))?;
        if let Some(cert) = &self.cert {
            let key = self.key.as_ref().unwrap_or(cert);
            let open = hathi_keyfile::read(key, self.key_password.as_deref())
                .map_err(|why| format!("{}: {why}", key.display()))?;
            options = options
                .with_pem_identity(&read(cert)?, &hathi_keyfile::to_pem(&open))
                .map_err(|why| unusable(key, why))?;
        }
        if !self.verify {
            // SAFETY: no memory is at stake; the operator gave the check of the name up.
            options = unsafe { options.with_no_hostname_verification() };
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves CFG-424.
    #[test]
    fn principals_are_subjects_unless_they_name_a_scheme() {
        let acls = vec![
            ("CN=a,O=b:c".to_owned(), vec![Right::All]),
            ("digest:u:h".to_owned(), vec![Right::Read, Right::Create]),
        ];
        let access = ZooKeeperConfig { acls, ..ZooKeeperConfig::default() }.access();
        let shown: Vec<_> = access.iter().map(|acl| (acl.scheme(), acl.id())).collect();
        assert_eq!(shown, [("x509", "CN=a,O=b:c"), ("digest", "u:h")]);
        assert_eq!(access[1].permission(), Permission::READ | Permission::CREATE);
    }

    #[test]
    fn few_servers_are_listed_several_times() {
        let servers = |hosts: &[&str]| {
            let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
            ZooKeeperConfig { hosts, ..ZooKeeperConfig::default() }.servers()
        };
        assert_eq!(servers(&["a:1"]).split(',').count(), 12);
        assert_eq!(servers(&["a:1", "b:2", "c:3"]), "a:1,b:2,c:3");
    }
}
