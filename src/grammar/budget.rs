//! What rewriting the grammars of a request's custom tools may cost: it is done before anything is compiled.
use std::fmt::{self, Write};

use regex_syntax::ast::{self, Ast, ClassSetItem, Visitor};
use regex_syntax::hir::{Hir, translate::Translator};

use super::GrammarError;
use super::compiler::LARK_BYTES_MAX;

/// Longest regular expression, in bytes.
pub(super) const REGEX_BYTES_MAX: usize = 4 << 10;
/// All grammars and regular expressions together, in bytes.
const BYTES_MAX: usize = LARK_BYTES_MAX;
/// Most classes of characters in all of them: one may have hundreds of ranges, some kilobytes.
const CLASSES_MAX: usize = 512;
/// Most bytes that all of them may have inside JSON.
pub(super) const QUOTED_BYTES_MAX: usize = 32 << 10;

/// What is left for the grammars of one request's custom tools.
#[derive(Debug)]
pub struct QuoteBudget {
    bytes: usize,
    classes: usize,
    quoted: usize,
}

impl Default for QuoteBudget {
    fn default() -> Self {
        Self { bytes: BYTES_MAX, classes: CLASSES_MAX, quoted: QUOTED_BYTES_MAX }
    }
}

impl QuoteBudget {
    /// Takes a definition of at most `most` bytes.
    pub(super) fn take_definition(&mut self, text: &str, most: usize) -> Result<(), GrammarError> {
        if text.len() > most {
            return Err(GrammarError::too_large(format!("it has {} bytes, more than the limit of {most}", text.len())));
        }
        self.bytes = self.bytes.checked_sub(text.len()).ok_or_else(|| {
            GrammarError::too_large(format!("with those before it, it has more than {BYTES_MAX} bytes"))
        })?;
        Ok(())
    }

    /// Reads a regular expression. Its classes are counted before any of them is spelled out.
    pub(super) fn parse(&mut self, pattern: &str) -> Result<Result<Hir, regex_syntax::Error>, GrammarError> {
        let ast = match ast::parse::Parser::new().parse(pattern) {
            Ok(ast) => ast,
            Err(error) => return Ok(Err(error.into())),
        };
        self.classes = ast::visit(&ast, Classes { left: self.classes })?;
        Ok(Translator::new().translate(pattern, &ast).map_err(Into::into))
    }

    /// Checks what has been written so far of the current definition.
    pub(super) fn check_quoted(&self, quoted: &str) -> Result<(), GrammarError> {
        if quoted.len() > self.quoted { Err(too_long()) } else { Ok(()) }
    }

    /// Takes a whole definition, rewritten.
    pub(super) fn take_quoted(&mut self, quoted: &str) -> Result<(), GrammarError> {
        self.quoted = self.quoted.checked_sub(quoted.len()).ok_or_else(too_long)?;
        Ok(())
    }

    /// A regular expression's text, as far as there is room for it.
    pub(super) fn print(&self, hir: &Hir) -> Result<String, GrammarError> {
        let mut text = Bounded { text: String::new(), most: self.quoted };
        write!(text, "{hir}").map_err(|_| too_long())?;
        Ok(text.text)
    }
}

fn too_long() -> GrammarError {
    let reason = format!(
        "with those before it, it takes more than {QUOTED_BYTES_MAX} bytes as written inside JSON; simplify its classes of \
         characters"
    );
    GrammarError::too_large(reason)
}

/// Counts the classes of characters.
struct Classes {
    left: usize,
}

impl Classes {
    fn take(&mut self) -> Result<(), GrammarError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            let reason = format!("with those before it, it has more than {CLASSES_MAX} classes of characters");
            GrammarError::too_large(reason)
        })?;
        Ok(())
    }
}

impl Visitor for Classes {
    type Output = usize;
    type Err = GrammarError;

    fn finish(self) -> Result<usize, GrammarError> {
        Ok(self.left)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), GrammarError> {
        match ast {
            Ast::ClassUnicode(_) | Ast::ClassPerl(_) | Ast::ClassBracketed(_) => self.take(),
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), GrammarError> {
        match item {
            ClassSetItem::Unicode(_) | ClassSetItem::Perl(_) | ClassSetItem::Bracketed(_) => self.take(),
            _ => Ok(()),
        }
    }
}

/// A text that is not written further than its bound.
struct Bounded {
    text: String,
    most: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.text.len() + more.len() > self.most {
            return Err(fmt::Error);
        }
        self.text.push_str(more);
        Ok(())
    }
}
