//! Where the API server is and who we are to it: a service account's files, or a kubeconfig.
//! (DCS-177)

use crate::Access;
use kube::Config;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::env;
use std::path::Path;

/// What Kubernetes mounts into every Pod with a service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Patroni's, for trying out on a laptop.
const CONTEXT: &str = "kind-kind";

/// Reads the files.
///
/// # Errors
/// One line: what was looked for, and what to do.
pub(crate) async fn resolve(access: &Access) -> Result<Config, String> {
    match access {
        Access::Account { url, token_file, cacert } => account(url, token_file, cacert),
        Access::Found { context, cacert } => match service() {
            Some(url) => {
                let dir = Path::new(ACCOUNT);
                let cacert = cacert.clone().unwrap_or_else(|| dir.join("ca.crt"));
                account(&url, &dir.join("token"), &cacert)
            }
            None => kubeconfig(context.as_deref()).await,
        },
    }
}

/// The service in front of the API servers, if this is a Pod with a service account.
fn service() -> Option<String> {
    let host = env::var("KUBERNETES_SERVICE_HOST").ok().filter(|host| !host.is_empty())?;
    let port = env::var("KUBERNETES_SERVICE_PORT_HTTPS")
        .or_else(|_| env::var("KUBERNETES_SERVICE_PORT"))
        .ok()
        .filter(|port| !port.is_empty())?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Path::new(ACCOUNT).join("token").exists().then(|| format!("https://{host}:{port}"))
}

fn account(url: &str, token: &Path, cacert: &Path) -> Result<Config, String> {
    let uri = url.parse().map_err(|why| format!("{url:?} is no URL: {why}"))?;
    let mut config = Config::new(uri);
    config.root_cert = Some(certificates(cacert)?);
    config.root_cert_file = Some(cacert.to_owned());
    if let Err(why) = std::fs::metadata(token) {
        return Err(format!("the service account's token {}: {why}", token.display()));
    }
    config.auth_info =
        AuthInfo { token_file: Some(token.to_string_lossy().into_owned()), ..AuthInfo::default() };
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let named = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(|why| named(&why))?;
    let all: Result<Vec<_>, _> = read.map(|one| one.map(|der| der.to_vec())).collect();
    let all = all.map_err(|why| named(&why))?;
    if all.is_empty() { Err(named(&"holds no certificate")) } else { Ok(all) }
}

async fn kubeconfig(context: Option<&str>) -> Result<Config, String> {
    let place = env::var("KUBECONFIG").unwrap_or_else(|_| "~/.kube/config".to_owned());
    let hint = "no Pod with a service account (KUBERNETES_SERVICE_HOST and its token), and";
    let read = match Kubeconfig::from_env() {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Kubeconfig::read(),
        Err(why) => Err(why),
    };
    let file = read.map_err(|why| {
        format!("{hint} the kubeconfig {place} cannot be read: {}", crate::servers::whole(&why))
    })?;
    let wanted = context.map(str::to_owned).or_else(|| {
        let there = file.contexts.iter().any(|known| known.name == CONTEXT);
        (there || file.current_context.is_none()).then(|| CONTEXT.to_owned())
    });
    let options = KubeConfigOptions { context: wanted, ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(file, &options).await;
    config.map_err(|why| {
        let wanted = options.context.as_deref().unwrap_or("its current one");
        format!(
            "{hint} the kubeconfig {place} is of no use with context {wanted}: {}",
            crate::servers::whole(&why)
        )
    })
}

/// The host that a server's certificate must name, also when it is asked by another address.
pub(crate) fn server_name(config: &Config) -> Option<String> {
    let host = config.cluster_url.host()?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves DCS-177 (what is missing is named).
    #[tokio::test]
    async fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let access = Access::Account {
            url: "https://127.0.0.1:1".into(),
            token_file: dir.path().join("token"),
            cacert: dir.path().join("ca.crt"),
        };
        let why = resolve(&access).await.expect_err("nothing is there");
        assert!(why.contains("ca.crt"), "{why}");
        std::fs::write(dir.path().join("ca.crt"), "nothing").expect("written");
        let why = resolve(&access).await.expect_err("no certificate");
        assert!(why.contains("ca.crt: holds no certificate"), "{why}");
    }
}
