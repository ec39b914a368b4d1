r"""
Which language is it? Text as sparse rows
=========================================

A message of a few words comes in, and has to go to someone who reads its language. Words are a poor
clue: most of those in a short message were never seen in training, and some scripts put no spaces
between them. Sequences of letters do better [1]_, as each language has its own. There are thousands
of them, of which a message holds a few dozen: text makes sparse rows, and they stay sparse from the
first step to the last.

The texts are what translators have made of the messages of Sphinx, in dozens of languages.
"""

import re
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import sphinx
from babel import Locale
from babel.messages.mofile import read_mo
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split

from skmax import SoftmaxRegression

# %%
# Texts and labels
# ----------------
# Placeholders, code and digits are taken out of the messages, since they are the same in all
# languages; so are messages that nobody has translated. Variants, such as the Portuguese of
# Portugal and of Brazil, are one language here. Languages with fewer than 60 messages are left out.

not_language = re.compile(r"%\(?\w*\)?\w|\{.*?\}|[\w./-]+[._/][\w./-]+|[^\w\s'\u2019-]|[\d_]")
languages = {}
for path in sorted(Path(sphinx.__file__).parent.glob("locale/*/LC_MESSAGES/sphinx.mo")):
    with path.open("rb") as file:
        messages = [(str(message.id), str(message.string)) for message in read_mo(file)]
    translated = (
        " ".join(not_language.sub(" ", new).split()) for old, new in messages if new != old
    )
    code = re.match("[a-z]+", path.parts[-3])[0]
    languages.setdefault(code, set()).update(text for text in translated if len(text) >= 12)

names = {
    code: Locale(code).english_name.split()[0]
    for code, texts in languages.items()
    if len(texts) >= 60
}
texts = [text for code in names for text in sorted(languages[code])]
y = np.array([name for code, name in names.items() for _ in languages[code]])
texts_train, texts_test, y_train, y_test = train_test_split(texts, y, stratify=y, random_state=0)
print(f"{len(texts)} messages in {len(names)} languages, such as {texts_train[0]!r} ({y_train[0]})")

# %%
# Sparse rows
# -----------
# The features are all sequences of one to three characters within words, with a space for the
# edge of a word, that occur in five messages or more. Each is weighted by tf-idf, and the rows by
# their length. In float32, the model computes in float32.

vectorizer = TfidfVectorizer(
    analyzer="char_wb", ngram_range=(1, 3), min_df=5, sublinear_tf=True, dtype=np.float32
)
X_train, X_test = vectorizer.fit_transform(texts_train), vectorizer.transform(texts_test)
print(f"{X_train.shape[1]} features, of which a message has {X_train.getnnz(axis=1).mean():.0f}")

# %%
# Two penalties
# -------------
# With the L2 penalty, every sequence gets a weight for every language. With L1, most weights become
# exactly zero, and few sequences have to do the work: some dozens per language. A bound of one
# percent on the distance to the optimum, ``tol=1e-2``, is close enough for predictions.

models = {
    "L2": SoftmaxRegression(C=100),
    "L1": SoftmaxRegression(C=3, l1_ratio=1, solver="lbfgs", tol=1e-2),
}
for penalty, model in models.items():
    model.fit(X_train, y_train)
    used = (model.coef_ != 0).sum(axis=1).mean()
    print(f"{penalty}: accuracy {model.score(X_test, y_test):.3f}, {used:.0f} weights per language")

# %%
# What the L1 penalty leaves is little to store, too. As a sparse matrix, the coefficients take a
# small part of the memory, and predictions are the same.

model = models["L1"]
dense_bytes = model.coef_.nbytes
before = model.predict(X_test)
model.sparsify()
coef = model.coef_
sparse_bytes = coef.data.nbytes + coef.indices.nbytes + coef.indptr.nbytes
print(f"{dense_bytes / 1e6:.1f} MB dense, {sparse_bytes / 1e6:.2f} MB sparse")
print(f"predictions that differ: {(model.predict(X_test) != before).sum()}")

# %%
# Languages that are taken for each other are mostly relatives:

wrong = before != y_test
pairs = Counter(zip(y_test[wrong], before[wrong], strict=True))
for (true, predicted), count in pairs.most_common(5):
    print(f"{true} taken for {predicted}: {count}")

# %%
# What speaks for a language
# --------------------------
# The largest weights of eight languages, with a dot for the edge of a word. Who reads a language
# will know its articles, endings and accents again; nobody has told the model of them.

features = np.char.replace(vectorizer.get_feature_names_out().astype(str), " ", "·")
shown = ["German", "French", "Italian", "Spanish", "Swedish", "Dutch", "Polish", "Turkish"]
fig, axes = plt.subplots(2, 4, figsize=(8, 4.8), layout="constrained", sharex=True)
for ax, language in zip(axes.flat, shown, strict=True):
    weights = coef[np.flatnonzero(model.classes_ == language)].toarray().ravel()
    top = np.argsort(weights)[-10:]
    ax.barh(features[top], weights[top], color="C0")
    ax.set_title(language, fontsize="medium")
    ax.tick_params(axis="y", length=0)
fig.supxlabel("weight")
plt.show()

# %%
# References
# ----------
# .. [1] W. B. Cavnar and J. M. Trenkle, N-gram-based text categorization, Proceedings of the Third
#    Annual Symposium on Document Analysis and Information Retrieval, 1994, pages 161-175.
