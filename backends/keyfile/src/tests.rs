use super::{KeyError, parse, read, to_pem};
use std::path::Path;
use std::process::Command;

const PASSWORD: &str = "dummy key pässword";

fn openssl(dir: &Path, arguments: &str) {
    // The password holds blanks, so it comes in by its place.
    let arguments =
        arguments.split(' ').map(|word| word.replace("PASSWORD", PASSWORD)).collect::<Vec<_>>();
    let out = Command::new("openssl").args(&arguments).current_dir(dir).output();
    let out = out.expect("openssl runs (scripts/setup installs it)");
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Every way in which OpenSSL locks a key, against the same key without a lock.
///
/// Proves REST-294 (the password of the key's file).
#[test]
fn locked_keys_are_the_keys_they_were_made_of() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    openssl(dir, "ecparam -name prime256v1 -genkey -noout -out ec.pem");
    openssl(dir, "genrsa -traditional -out rsa.pem 2048");
    for kind in ["ec", "rsa"] {
        openssl(dir, &format!("pkcs8 -topk8 -nocrypt -in {kind}.pem -out {kind}.p8"));
        let seal = format!("pkcs8 -topk8 -in {kind}.pem -passout pass:PASSWORD");
        for (at, how) in [
            "-v2 aes-128-cbc",
            "-v2 aes-256-cbc",
            "-v2 aes-256-cbc -v2prf hmacWithSHA512",
            "-v2 aes-256-cbc -v2prf hmacWithSHA1",
            "-v2 des3",
            "-scrypt",
        ]
        .iter()
        .enumerate()
        {
            openssl(dir, &format!("{seal} {how} -out {kind}.{at}"));
            same(dir, &format!("{kind}.{at}"), &format!("{kind}.p8"), how);
        }
        for how in ["-aes128", "-aes192", "-aes256", "-des3"] {
            let name = format!("{kind}.old");
            openssl(
                dir,
                &format!(
                    "{kind} -in {kind}.pem {how} -passout pass:PASSWORD -out {name}{}",
                    if kind == "rsa" { " -traditional" } else { "" }
                ),
            );
            same(dir, &name, &format!("{kind}.pem"), how);
        }
    }
}

fn same(dir: &Path, locked: &str, plain: &str, how: &str) {
    let (locked, plain) = (dir.join(locked), dir.join(plain));
    let expected = read(&plain, Some("not needed")).expect("it has no password");
    let found = read(&locked, Some(PASSWORD)).unwrap_or_else(|why| panic!("{how}: {why}"));
    assert_eq!(found.secret_der(), expected.secret_der(), "{how}");
    let again = parse(to_pem(&found).as_bytes(), None).expect("it is open now");
    assert_eq!(again.secret_der(), expected.secret_der(), "{how}");
    assert!(matches!(read(&locked, None), Err(KeyError::Locked)), "{how}");
    // The padding of a wrong password fits now and then; deriving the newer ones is slow on purpose.
    let tries = if how.starts_with("-v2") || how == "-scrypt" { 1 } else { 600 };
    for wrong in 0..tries {
        let answer = read(&locked, Some(&format!("wrong {wrong}")));
        assert!(matches!(answer, Err(KeyError::WrongPassword)), "{how}: {answer:?}");
    }
}

/// The certificate stands before the key in one file, Windows wrote it, and an `EC PARAMETERS` block
/// stands in between.
#[test]
fn the_key_is_found_beside_other_things() {
    let dir = tempfile::tempdir().expect("a directory");
    openssl(dir.path(), "ecparam -name prime256v1 -genkey -out ec.pem");
    openssl(dir.path(), "ec -in ec.pem -aes256 -passout pass:PASSWORD -out old.pem");
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("a file");
    let certificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let parameters =
        text("ec.pem").split_inclusive("PARAMETERS-----\n").take(2).collect::<String>();
    let all = format!("subject: x\n{certificate}{parameters}{}", text("old.pem"));
    let key = parse(all.replace('\n', "\r\n").as_bytes(), Some(PASSWORD)).expect("a key");
    let plain = read(&dir.path().join("ec.pem"), None).expect("a key");
    assert_eq!(key.secret_der(), plain.secret_der());
}

#[test]
fn what_is_no_key_is_said_so() {
    for (content, says) in [
        ("", "no private key"),
        ("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", "no private key"),
        (
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "not supported",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: RC2-CBC,0011223344556677\n\nMAA=\n-----END RSA PRIVATE KEY-----\n",
            "RC2-CBC",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n",
            "not supported",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0011223344556677\n\nMAA=\n-----END RSA PRIVATE KEY-----\n",
            "another length",
        ),
    ] {
        let why = parse(content.as_bytes(), Some("x")).expect_err("no key").to_string();
        assert!(why.contains(says), "{content}: {why}");
    }
    assert!(matches!(read(Path::new("/nowhere/key"), None), Err(KeyError::Unreadable(_))));
}
