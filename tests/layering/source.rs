//! The modules of a crate with every path that they name, from the parsed sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Ident, Item, UseTree, Visibility};

/// Texts of source files by their path.
pub type Files = BTreeMap<PathBuf, String>;

/// A module: a file, or a part of one.
#[derive(Debug, Default)]
pub struct Module {
    /// Its names below the crate's root.
    pub path: Vec<String>,
    /// The file that it is written in.
    pub file: PathBuf,
    /// Whether it is compiled for tests only.
    pub test: bool,
    /// What it names, as written.
    pub named: Vec<Named>,
    /// Names that `use` brings in, with the path that each stands for.
    imports: BTreeMap<String, Vec<String>>,
    /// Paths whose `*` is brought in.
    globs: Vec<Vec<String>>,
    /// What is defined here.
    items: BTreeSet<String>,
}

/// A path that a module names.
#[derive(Debug)]
pub struct Named {
    /// The segments as written: may begin with `crate`, `self`, `super` or a name that was brought in.
    pub path: Vec<String>,
    /// The line of the file.
    pub line: usize,
    /// Whether it stands in code for tests only.
    pub test: bool,
    /// Whether it ends in `*`.
    pub glob: bool,
}

/// All modules of a crate.
#[derive(Debug)]
pub struct Crate {
    /// In the order in which they were found.
    pub modules: Vec<Module>,
    index: BTreeMap<Vec<String>, usize>,
}

impl Crate {
    /// Follows the `mod` items of the root file through the others.
    ///
    /// # Panics
    /// If a file is missing or is not Rust.
    pub fn read(files: &Files, root: &Path) -> Self {
        let mut found = vec![];
        read_file(files, root, vec![], false, &mut found);
        let index = found.iter().enumerate().map(|(i, m)| (m.path.clone(), i)).collect();
        Self { modules: found, index }
    }

    /// A path from the crate's root on; none for names of other crates and of the function's own.
    pub fn absolute(&self, module: &Module, path: &[String]) -> Option<Vec<String>> {
        self.absolute_at(module, path, 0)
    }

    fn absolute_at(&self, module: &Module, path: &[String], depth: usize) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let mut base = match first.as_str() {
            "crate" => vec![],
            "self" => module.path.clone(),
            "super" => {
                let (_, above) = module.path.split_last()?;
                let above = &self.modules[*self.index.get(above)?];
                // `super::super` goes on from there.
                return match rest.first().map(String::as_str) {
                    Some("super") => self.absolute_at(above, rest, depth),
                    _ => Some([&above.path, rest].concat()),
                };
            }
            name => {
                let child = [&module.path[..], &[name.to_owned()]].concat();
                match (self.index.contains_key(&child), module.imports.get(name)) {
                    (true, _) => child,
                    // An import that names itself (`use serde::serde`) ends somewhere.
                    (_, Some(import)) if depth < 8 => {
                        self.absolute_at(module, import, depth + 1)?
                    }
                    _ => return None,
                }
            }
        };
        base.extend_from_slice(rest);
        Some(base)
    }

    /// The module that an absolute path leads to, and whether the path ends there (else it goes on to an item).
    /// Names that a module passes on from another one are followed.
    pub fn definition(&self, path: &[String]) -> Option<(usize, bool)> {
        self.definition_at(path, 0)
    }

    fn definition_at(&self, path: &[String], depth: usize) -> Option<(usize, bool)> {
        let mut at = *self.index.get(&[][..])?;
        for (i, name) in path.iter().enumerate() {
            let module = &self.modules[at];
            if let Some(child) = self.index.get(&path_in(&module.path, name)) {
                at = *child;
                continue;
            }
            let passed_on = self.passed_on(module, name).filter(|_| depth < 8);
            let onward = passed_on
                .and_then(|to| self.definition_at(&[&to[..], &path[i + 1..]].concat(), depth + 1));
            return onward.or(Some((at, false)));
        }
        Some((at, true))
    }

    /// Where a name of a module comes from, if it is of another one.
    fn passed_on(&self, module: &Module, name: &str) -> Option<Vec<String>> {
        if module.items.contains(name) {
            return None;
        }
        if let Some(import) = module.imports.get(name) {
            return self.absolute(module, import);
        }
        let globs = module.globs.iter().filter_map(|glob| self.absolute(module, glob));
        let mut owners = globs.filter(|path| {
            let owner = self.index.get(path).map(|i| &self.modules[*i]);
            owner.is_some_and(|m| m.items.contains(name) || m.imports.contains_key(name))
        });
        owners.next().map(|path| path_in(&path, name))
    }
}

fn path_in(path: &[String], name: &str) -> Vec<String> {
    [path, &[name.to_owned()]].concat()
}

fn read_file(files: &Files, file: &Path, path: Vec<String>, test: bool, found: &mut Vec<Module>) {
    let text = files.get(file).unwrap_or_else(|| panic!("no file {}", file.display()));
    let parsed = syn::parse_file(text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let beside = file.parent().unwrap_or(Path::new(""));
    let folder = match stem {
        "mod" | "lib" | "main" => beside.to_owned(),
        _ => beside.join(stem),
    };
    let module = Module { path, file: file.to_owned(), test, ..Module::default() };
    let mut reader = Reader { files, folder, module, test, found, inline: false };
    reader.visit_file(&parsed);
    let module = reader.module;
    found.push(module);
}

/// Collects what one module names, and goes on into those below it.
struct Reader<'a> {
    files: &'a Files,
    /// Where files of modules below this one lie.
    folder: PathBuf,
    module: Module,
    /// Whether the code at hand is for tests only.
    test: bool,
    found: &'a mut Vec<Module>,
    /// Whether the module is a part of a file.
    inline: bool,
}

impl Reader<'_> {
    fn name(&mut self, path: Vec<String>, line: usize, glob: bool) {
        self.module.named.push(Named { path, line, test: self.test, glob });
    }

    /// A `use`, with the segments in front of it.
    fn import(&mut self, tree: &UseTree, before: &[String]) {
        let line = tree.span().start().line;
        match tree {
            UseTree::Path(path) => {
                self.import(&path.tree, &path_in(before, &path.ident.to_string()));
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, before)),
            UseTree::Glob(_) => {
                self.module.globs.push(before.to_vec());
                self.name(before.to_vec(), line, true);
            }
            UseTree::Name(name) => self.import_as(&name.ident, &name.ident, before, line),
            UseTree::Rename(rename) => self.import_as(&rename.ident, &rename.rename, before, line),
        }
    }

    fn import_as(&mut self, ident: &Ident, alias: &Ident, before: &[String], line: usize) {
        // `a::{self}` is `a`; alone, `self` is this module.
        let path = match ident == "self" && !before.is_empty() {
            true => before.to_vec(),
            false => path_in(before, &ident.to_string()),
        };
        let alias = match alias == "self" {
            true => path.last().cloned().unwrap_or_default(),
            false => alias.to_string(),
        };
        self.module.imports.insert(alias, path.clone());
        self.name(path, line, false);
    }

    /// Paths among the tokens of a macro or an attribute; with `texts` also whole texts that are paths
    /// (`#[serde(with = "crate::io::json")]`).
    fn tokens(&mut self, tokens: TokenStream, texts: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut i = 0;
        while i < tokens.len() {
            match &tokens[i] {
                TokenTree::Ident(first) => {
                    let (path, next) = path_at(&tokens, i);
                    let group = match tokens.get(next) {
                        Some(TokenTree::Group(group)) if is_joint(&tokens, next) => Some(group),
                        _ => None,
                    };
                    let star =
                        matches!(tokens.get(next), Some(TokenTree::Punct(p)) if p.as_char() == '*');
                    match group.filter(|group| group.delimiter() == Delimiter::Brace) {
                        Some(group) => {
                            let group = TokenTree::Group(group.clone());
                            // Not a list of `use`: its parts are looked at by themselves.
                            if let Ok(tree) = syn::parse2::<UseTree>(group.into()) {
                                self.import(&tree, &path);
                            }
                        }
                        None if star && is_joint(&tokens, next) => {
                            self.name(path, first.span().start().line, true);
                        }
                        None => self.name(path, first.span().start().line, false),
                    }
                    i = next.max(i + 1);
                    continue;
                }
                TokenTree::Group(group) => self.tokens(group.stream(), texts),
                TokenTree::Literal(literal) if texts => {
                    let text = literal.to_string();
                    let path: Vec<String> =
                        text.trim_matches('"').split("::").map(str::to_owned).collect();
                    if path.len() > 1 {
                        self.name(path, literal.span().start().line, false);
                    }
                }
                _ => {}
            }
            i += 1;
        }
    }

    /// Goes on with the code of a test, or of everything.
    fn in_test(&mut self, test: bool, go_on: impl FnOnce(&mut Self)) {
        let before = self.test;
        self.test |= test;
        go_on(self);
        self.test = before;
    }

    fn submodule(&mut self, item: &syn::ItemMod) {
        let name = item.ident.to_string();
        let path = path_in(&self.module.path, &name);
        let Some((_, items)) = &item.content else {
            let file = self.file_of(item, &name);
            return read_file(self.files, &file, path, self.test, self.found);
        };
        let module =
            Module { path, file: self.module.file.clone(), test: self.test, ..Module::default() };
        let mut inner = Reader {
            files: self.files,
            folder: self.folder.join(&name),
            module,
            test: self.test,
            found: &mut *self.found,
            inline: true,
        };
        items.iter().for_each(|item| inner.visit_item(item));
        let module = inner.module;
        self.found.push(module);
    }

    /// The file of `mod name;`.
    fn file_of(&self, item: &syn::ItemMod, name: &str) -> PathBuf {
        let given = item.attrs.iter().find_map(|attribute| match &attribute.meta {
            syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
                _ => None,
            },
            _ => None,
        });
        if let Some(given) = given {
            let own = self.module.file.parent().unwrap_or(Path::new(""));
            return if self.inline { &self.folder } else { own }.join(given);
        }
        let flat = self.folder.join(format!("{name}.rs"));
        if self.files.contains_key(&flat) { flat } else { self.folder.join(name).join("mod.rs") }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = head_of(item);
        self.module.items.extend(name.map(Ident::to_string));
        self.in_test(attributes.iter().any(is_for_tests), |reader| visit::visit_item(reader, item));
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.submodule(item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.name(segments, path.span().start().line, false);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone(), false);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        // Documentation is of another kind, and so are names without arguments.
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), true);
        }
    }

    /// `pub(in path)` says who may see, it uses nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

/// The path that begins at a token, and the token after it; a trailing `::` belongs to it.
fn path_at(tokens: &[TokenTree], mut i: usize) -> (Vec<String>, usize) {
    let mut path = vec![];
    while let Some(TokenTree::Ident(ident)) = tokens.get(i) {
        path.push(ident.to_string());
        i += 1;
        if !is_joint(tokens, i + 2) {
            break;
        }
        i += 2;
    }
    (path, i)
}

/// Whether `::` stands in front of that place.
fn is_joint(tokens: &[TokenTree], place: usize) -> bool {
    let colon = |i: usize| match tokens.get(i) {
        Some(TokenTree::Punct(punct)) if punct.as_char() == ':' => Some(punct.spacing()),
        _ => None,
    };
    place >= 2 && colon(place - 2) == Some(Spacing::Joint) && colon(place - 1).is_some()
}

/// Attributes and name of an item.
fn head_of(item: &Item) -> (&[Attribute], Option<&Ident>) {
    match item {
        Item::Const(i) => (&i.attrs, Some(&i.ident)),
        Item::Enum(i) => (&i.attrs, Some(&i.ident)),
        Item::Fn(i) => (&i.attrs, Some(&i.sig.ident)),
        Item::Impl(i) => (&i.attrs, None),
        Item::Macro(i) => (&i.attrs, i.ident.as_ref()),
        Item::Mod(i) => (&i.attrs, Some(&i.ident)),
        Item::Static(i) => (&i.attrs, Some(&i.ident)),
        Item::Struct(i) => (&i.attrs, Some(&i.ident)),
        Item::Trait(i) => (&i.attrs, Some(&i.ident)),
        Item::Type(i) => (&i.attrs, Some(&i.ident)),
        Item::Use(i) => (&i.attrs, None),
        _ => (&[], None),
    }
}

/// `#[test]`, `#[cfg(test)]` and conditions that contain it, but for `not(test)`.
fn is_for_tests(attribute: &Attribute) -> bool {
    let tokens = match &attribute.meta {
        syn::Meta::List(list) if list.path.is_ident("cfg") => list.tokens.to_string(),
        syn::Meta::Path(path) => return path.is_ident("test"),
        _ => return false,
    };
    let words: Vec<&str> = tokens.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    words.contains(&"test") && !words.contains(&"not")
}
