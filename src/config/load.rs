//! From a file, a directory or the environment to [`Local`].

use super::document::{Document, value_of};
use super::environment::{CONFIGURATION, apply as apply_environment};
use super::local::LocalSection;
use super::reader::{Findings, Reader};
use super::yaml::{self, Kind};
use super::{
    ConfigError, Environment, Local, Log, Origin, Problem, RaftSection, Warning, effective, keys,
    postgresql, services, stores,
};
use hathi_dcs::{MemberName, Scope};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Reads the configuration of this node: `path` (file or directory) if given and there, otherwise
/// the document in PATRONI_CONFIGURATION, otherwise the environment alone. (CFG-001 … CFG-003)
///
/// # Errors
/// Every problem found, each with file, line and path of the key: show them and exit with 1.
pub fn load(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<(Local, Vec<Warning>), ConfigError> {
    let (document, mut warnings) = read(path, environment)?;
    let root = Value::Object(document.values);
    let findings = Findings::new(&document.origins);
    let reader = Reader::root(&findings, &root);
    let local = typed(&reader, environment).map(|mut local| {
        local.postgresql_section = LocalSection {
            values: root.get("postgresql").cloned().unwrap_or_default(),
            origins: document.origins.clone(),
        };
        local
    });
    services::citus(&reader.get("citus"));
    if let Value::Object(values) = &root {
        keys::local().check(&findings, "", values);
    }
    let (local, own) = findings.finish(local)?;
    // What the document of a new cluster, and the local section over it, come to: now is the time
    // to say what is wrong with it.
    let first = local.first_dynamic();
    let (_, dynamic, section) =
        effective::apply(&local, &first, &document.origins, "bootstrap.dcs")?;
    warnings.extend(own);
    warnings.extend(section);
    warnings.extend(dynamic);
    Ok((local, warnings))
}

/// The merged local configuration as it stands, secrets included. (CFG-121 `--print`)
///
/// # Errors
/// As for [`load`], as far as reading goes.
pub fn merged(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<Map<String, Value>, ConfigError> {
    read(path, environment).map(|(document, _)| document.values)
}

/// What a witness needs of its file: no PostgreSQL, no REST API. A whole node's file will do.
#[derive(Clone, Debug, PartialEq)]
pub struct WitnessConfig {
    /// `witness` unless given.
    pub name: MemberName,
    pub scope: Scope,
    pub raft: RaftSection,
    pub log: Log,
}

/// Reads the file of a witness, from the same sources as [`load`].
///
/// # Errors
/// As for [`load`].
pub fn load_witness(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<(WitnessConfig, Vec<Warning>), ConfigError> {
    let (document, mut warnings) = read(path, environment)?;
    let root = Value::Object(document.values);
    let findings = Findings::new(&document.origins);
    let reader = Reader::root(&findings, &root);
    let section = reader.get("raft");
    if !section.is_there() {
        section
            .fail("is not defined; a witness votes in the embedded store and needs this section");
    }
    let scope = reader.get("scope").required();
    let namespace = reader.get("namespace").text().unwrap_or_else(|| "service".to_owned());
    let raft = if section.is_map() { stores::raft(&section) } else { None };
    let witness = scope.zip(raft).map(|(scope, raft)| WitnessConfig {
        name: MemberName::new(reader.get("name").text().unwrap_or_else(|| "witness".to_owned())),
        scope: Scope::new(&namespace, &scope),
        raft,
        log: services::log(&reader.get("log")),
    });
    if let Value::Object(values) = &root {
        keys::local().check(&findings, "", values);
    }
    let (witness, own) = findings.finish(witness)?;
    warnings.extend(own);
    Ok((witness, warnings))
}

fn read(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<(Document, Vec<Warning>), ConfigError> {
    let mut document = Document::default();
    let mut warnings = Vec::new();
    let whole = environment.get(CONFIGURATION).filter(|text| !text.is_empty());
    match (path.filter(|path| path.try_exists().unwrap_or(true)), path, whole) {
        (Some(path), _, _) => {
            for file in files(path)? {
                let text = std::fs::read_to_string(&file)
                    .map_err(|error| problem(&file, format!("cannot be read: {error}")))?;
                add(&mut document, &file.display().to_string(), &text)?;
            }
            warnings = apply_environment(&mut document, environment);
        }
        (None, _, Some(text)) => add(&mut document, CONFIGURATION, text)?,
        (None, Some(path), None) => {
            warnings = apply_environment(&mut document, environment);
            if document.values.is_empty() {
                let text = "no such file or directory; name the YAML file of this node";
                return Err(problem(path, text.to_owned()));
            }
        }
        (None, None, None) => warnings = apply_environment(&mut document, environment),
    }
    if document.values.is_empty() {
        let text = match path {
            Some(path) => format!("{}: the configuration is empty", path.display()),
            None => {
                "the configuration is empty: name the YAML file of this node, or set PATRONI_* \
                     variables"
                    .to_owned()
            }
        };
        return Err(one(Problem { origin: None, path: String::new(), text }));
    }
    Ok((document, warnings))
}

/// The file itself, or the directory's `*.yml` and `*.yaml`, sorted by name. (CFG-002)
fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path)
        .map_err(|error| problem(path, format!("cannot be listed: {error}")))?;
    let yaml = |file: &PathBuf| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("yml" | "yaml")) && file.is_file()
    };
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(yaml).collect();
    files.sort();
    if files.is_empty() {
        return Err(problem(path, "holds no *.yml and no *.yaml file".to_owned()));
    }
    Ok(files)
}

/// Puts one document over what is here. It must be a mapping.
fn add(document: &mut Document, file: &str, text: &str) -> Result<(), ConfigError> {
    let at = |line: usize, text: String| {
        let origin = Some(Origin::File { file: file.to_owned(), line });
        one(Problem { origin, path: String::new(), text })
    };
    let root =
        yaml::parse(text).map_err(|fault| at(fault.line, format!("bad YAML: {}", fault.text)))?;
    match &root.kind {
        Kind::Map(_) => document.merge_file(file, &root),
        _ => {
            let found = super::reader::kind(&value_of(&root));
            return Err(at(root.line, format!("is {found}, a mapping is expected")));
        }
    }
    Ok(())
}

fn problem(path: &Path, text: String) -> ConfigError {
    one(Problem { origin: None, path: String::new(), text: format!("{}: {text}", path.display()) })
}

fn one(problem: Problem) -> ConfigError {
    ConfigError { problems: vec![problem] }
}

/// The typed configuration, or `None` with what is missing said. Everything is read before anything
/// is given up, so that one run shows every problem. (CFG-469)
fn typed(root: &Reader<'_>, environment: &Environment) -> Option<Local> {
    let name = root.get("name");
    let name = if name.is_there() { name } else { root.get("postgresql").get("name") };
    let name = name.required();
    let scope = root.get("scope").required();
    for (key, value) in [("name", &name), ("scope", &scope)] {
        if value.as_ref().is_some_and(|text| text.contains('/')) {
            root.get(key).fail("contains a slash, which separates keys in the store; remove it");
        }
    }
    let namespace = root.get("namespace").text().unwrap_or_else(|| "service".to_owned());
    let section = root.get("restapi");
    if !section.is_there() {
        section.fail("is not defined; add restapi with listen and connect_address");
    }
    let restapi = if section.is_map() { services::restapi(&section) } else { None };
    let ctl = services::ctl(&root.get("ctl"), restapi.as_ref());
    let dcs = stores::choose(root);
    let bootstrap = services::bootstrap(&root.get("bootstrap"));
    let section = root.get("postgresql");
    if !section.is_there() {
        section.fail("is not defined; add postgresql with listen, data_dir and authentication");
    }
    let postgresql = if section.is_map() { postgresql::local(&section, environment) } else { None };
    let watchdog = services::watchdog(&root.get("watchdog"));
    let guard = services::guard(&root.get("guard"));
    let tags = services::tags(&root.get("tags"));
    let log = services::log(&root.get("log"));
    Some(Local {
        name: MemberName::new(name?),
        scope: Scope::new(&namespace, &scope?),
        restapi: restapi?,
        ctl,
        dcs: dcs?,
        bootstrap,
        postgresql: postgresql?,
        watchdog,
        guard,
        tags,
        log,
        postgresql_section: LocalSection::default(),
    })
}
