//! `spore base`.

use std::process::ExitCode;

use serde_json::{Value, json};
use spore_builder::base::{Base, BaseStore, PackageManager, Recipes};
use spore_builder::import::{ImportLimits, Source, import};
use spore_builder::manifest::BaseName;

use super::{cache_dir, print_json};
use crate::cli::{Base as Args, BaseImport, Global};
use crate::failure::Failure;
use crate::ui;

/// Digits of a digest in a table.
const SHORT: usize = 12;

/// Works with bases.
pub fn run(global: &Global, args: &Args) -> Result<ExitCode, Failure> {
    let cache = std::path::absolute(cache_dir(global)?).map_err(Failure::internal)?;
    let store = BaseStore::new(cache.join("bases"));
    match args {
        Args::Build { name, refresh } => build(global, &store, name, *refresh),
        Args::Import(args) => import_image(global, &store, args),
        Args::List => list(global, &store),
        Args::Rm { names } => remove(global, &store, names),
    }
}

fn base_name(text: &str) -> Result<BaseName, Failure> {
    BaseName::parse(text)
        .map_err(|rule| Failure::refused("invalid_request", format!("the base's name {text:?} {rule}")))
}

fn build(global: &Global, store: &BaseStore, name: &str, refresh: bool) -> Result<ExitCode, Failure> {
    let name = base_name(name)?;
    Recipes::find()?.build(store, &name, refresh)?;
    tell(global, &store.get(&name)?)
}

fn import_image(global: &Global, store: &BaseStore, args: &BaseImport) -> Result<ExitCode, Failure> {
    let source = Source::parse(&args.source)?;
    let name = match &args.name {
        Some(name) => base_name(name)?,
        None => BaseName::parse(&source.suggested_name()).map_err(|_| {
            Failure::refused(
                "invalid_request",
                "the image's file has no name for a base; set --name",
            )
        })?,
    };
    let limits = ImportLimits {
        max_bytes: args.max_bytes,
        max_entries: args.max_entries,
        disk_mib: args.disk_mb,
    };
    let agent = Recipes::find()?.agent()?;
    let imported = import(store, &source, &name, &agent, &limits)?;
    for (count, what) in [
        (imported.devices, "devices"),
        (imported.xattrs, "extended attributes"),
    ] {
        if count > 0 {
            ui::tell(format_args!("{count} {what} were left out"));
        }
    }
    if !imported.has_shell {
        ui::tell(format_args!("there is no /bin/sh in it: `run` steps will fail"));
    }
    tell(global, &imported.base)
}

/// Prints what there is now.
fn tell(global: &Global, base: &Base) -> Result<ExitCode, Failure> {
    if global.json {
        print_json(&as_json(base)?)?;
    } else {
        ui::line(format_args!(
            "{} is ready: {} on disk, {}",
            base.name(),
            ui::bytes(base.disk_bytes()),
            base.rootfs().display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(global: &Global, store: &BaseStore) -> Result<ExitCode, Failure> {
    // One that goes or is damaged meanwhile is not listed.
    let bases: Vec<_> = store
        .names()
        .iter()
        .filter_map(|name| store.get(name).ok())
        .collect();
    if global.json {
        print_json(&bases.iter().map(as_json).collect::<Result<_, _>>()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = bases.iter().map(row).collect::<Result<Vec<_>, _>>()?;
    ui::table(&["BASE", "DIGEST", "DISK", "PACKAGES", "BUILT"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn remove(global: &Global, store: &BaseStore, names: &[String]) -> Result<ExitCode, Failure> {
    let names = names
        .iter()
        .map(|name| base_name(name))
        .collect::<Result<Vec<_>, _>>()?;
    for name in &names {
        store.remove(name)?;
        if !global.json {
            ui::line(format_args!("{name} removed"))?;
        }
    }
    if global.json {
        let names: Vec<_> = names.iter().map(BaseName::as_str).collect();
        print_json(&json!({ "removed": names }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn package_manager(base: &Base) -> Option<&'static str> {
    base.package_manager().map(|manager| match manager {
        PackageManager::Apt => "apt",
    })
}

fn built(base: &Base) -> u64 {
    ui::unix_seconds(base.built())
}

fn as_json(base: &Base) -> Result<Value, Failure> {
    Ok(json!({
        "name": base.name().as_str(),
        "digest": base.digest()?.to_string(),
        "path": base.rootfs(),
        "diskBytes": base.disk_bytes(),
        "packageManager": package_manager(base),
        "builtUnixSeconds": built(base),
        "config": base.config(),
    }))
}

fn row(base: &Base) -> Result<Vec<String>, Failure> {
    Ok(vec![
        base.name().to_string(),
        base.digest()?.to_string().chars().take(SHORT).collect(),
        ui::bytes(base.disk_bytes()),
        package_manager(base).unwrap_or("-").to_owned(),
        ui::age(built(base)),
    ])
}
