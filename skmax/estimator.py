"""SoftmaxRegression: parameters, fit, partial_fit and predict. The mathematics is elsewhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.callback import CallbackSupportMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_array, check_is_fitted

from skmax import fitted
from skmax._sklearn import (
    Interval,
    Options,
    SparseCoefMixin,
    StrOptions,
    _fit_context,
    check_same_namespace,
    validate_parameter_constraints,
)
from skmax.annotations import (
    BackendName,
    ClassWeight,
    Data,
    HostRows,
    RandomState,
    ScheduleName,
    SolverName,
    TakesRows,
)
from skmax.backends import Array, float_dtype_for, resolve
from skmax.callbacks import Callbacks
from skmax.data import Blocks, opened, source
from skmax.ending import warn_unless_good
from skmax.hyperparameters import Hyperparameters
from skmax.objective import predictions
from skmax.outputs import WrittenLabels, write_rows
from skmax.policy import Method, Size, choose
from skmax.posing import Seen, Share, pose, pose_validation
from skmax.problem import Problem, State
from skmax.solvers.learning_rate import stable_rate
from skmax.solvers.optimality import optimality_gap
from skmax.solvers.preconditioner import Moments, precondition
from skmax.solvers.run import Epochs, run, sgd
from skmax.solvers.schedules import SCHEDULES
from skmax.stopping import Watch
from skmax.training import train
from skmax.validation import (
    Targets,
    check_announced_classes,
    check_same_model,
    check_validation_X_y,
    check_weights,
    check_X,
    check_X_y,
    is_valid_if_finite,
    like,
    to_host,
)


class SoftmaxRegression(CallbackSupportMixin, SparseCoefMixin, ClassifierMixin, BaseEstimator):
    """Softmax regression (multinomial logistic regression).

    The model is ``p(class j | x) = exp(w_j x + b_j) / sum_l exp(w_l x + b_l)``. Fitting minimises
    the objective of :class:`~sklearn.linear_model.LogisticRegression`,

    ``C * sum_i s_i CE_i + (1 - l1_ratio)/2 * ||W||^2 + l1_ratio * ||W||_1``,

    where CE_i is the cross-entropy of row i and s_i its weight. X is used as it comes: it needs no
    scaling, and is never copied to be converted.

    Parameters
    ----------
    C : float, default=1.0
        Inverse of the strength of the penalty, greater than 0: the larger, the weaker. `np.inf`
        means no penalty.
    l1_ratio : float, default=0.0
        Share of the L1 penalty, from 0 (ridge) to 1 (lasso). With L1, coefficients become exactly
        zero. The intercept is not penalised.
    fit_intercept : bool, default=True
        Whether to fit an intercept.
    class_weight : dict or "balanced", default=None
        Weights of the classes, by label; missing ones weigh 1. "balanced": inversely proportional
        to the weight that each class has in y.
    label_smoothing : float, default=0.0
        From 0 to below 1. Targets, class weights included, become
        ``(1 - label_smoothing) * y + label_smoothing / n_classes``.
    solver : {"auto", "sgd", "lbfgs", "newton"}, default="auto"
        "sgd": minibatch stochastic gradient descent with momentum (heavy ball), and nothing else.
        "lbfgs": L-BFGS on all rows, led by the curvature of the data, to the optimum; with L1,
        orthant-wise. On many dense rows of fifteen classes or more it begins with three epochs of
        SGD, in an order that is always the same. "newton": Newton's method, for few weights or
        rows, to the optimum in full precision; with L1, proximal Newton. "auto": what is best for
        the data and the other parameters, and said in `solver_`: on small and middling data a
        solver that goes to the optimum (or "lbfgs", and "newton" from the iteration on at which it
        would have cost less), on large data "sgd"; "sgd", too, wherever `learning_rate`,
        `schedule`, `batch_size`, `momentum`, `shuffle` or `early_stopping` is not at its default,
        of which "lbfgs" and "newton" take no notice, but for `early_stopping`.
    preconditioner : {"diagonal"} or None, default="diagonal"
        "diagonal": steps are taken as if every feature had been centred, and divided by
        ``sqrt(variance + penalty curvature)``; without an intercept, not centred, and divided by
        its root mean square. Objective, penalty and coefficients stay those of X as given. None:
        plain steps, as in a textbook.
    learning_rate : float or "auto", default="auto"
        The step for the mean gradient of a minibatch, in the coordinates of the preconditioner.
        "auto": found by a short race on a sample of the data (in `partial_fit`: from the curvature
        of the rows given), and reduced where training diverges.
    schedule : {"cosine", "linear", "constant", "invscaling"}, default="cosine"
        How the learning rate changes with every step: to zero at `max_iter`, along half a cosine
        or a line; not at all; or like ``1 / sqrt(1 + epochs)``.
    max_iter : int, default=None
        The most epochs for "sgd", iterations for the others. None: as many epochs as make 900
        steps, and at least 3; 1000 iterations of "lbfgs", 500 of "newton".
    batch_size : int or "auto", default="auto"
        Rows per minibatch; the last one of an epoch may be smaller. "auto":
        ``min(200, n_samples)``.
    momentum : float, default=0.9
        From 0 to below 1.
    shuffle : bool, default=True
        Whether to visit the rows in a new order in every epoch.
    tol : float, default=1e-4
        "sgd" stops when the objective has not fallen by this share of itself for
        `n_iter_no_change` epochs (nor risen by it, while a schedule is to end). "lbfgs" and
        "newton" stop when the objective is proven to be within this share of its least value;
        without a penalty, where nothing can be proven of weights of any length, of its least value
        for weights up to twice as long. With `early_stopping`, training stops when the validation
        accuracy has not risen by `tol`. 0 runs all epochs.
    n_iter_no_change : int or np.inf, default=None
        Number of epochs to wait. None: a tenth of the epochs planned, and at least 10.
    early_stopping : bool, default=False
        Whether to stop on the validation accuracy, of rows held out or of `X_val`, and to keep the
        weights of the best epoch.
    validation_fraction : float, default=0.1
        Share of the rows that `early_stopping` holds out, stratified, where no `X_val` is given.
    warm_start : bool, default=False
        Whether `fit` goes on from the coefficients of the last call. Curves start anew.
    random_state : int, RandomState instance or None, default=None
        Determines the order of the rows, the rows held out, and the race for the learning rate.
    verbose : int, default=0
        Whether to print a line per epoch.
    backend : {"auto", "numpy", "cupy"}, default="auto"
        Where `fit` and `partial_fit` compute. "auto": where X is, under scikit-learn's
        `array_api_dispatch`; without that, with NumPy. "numpy", "cupy": there, X being moved in its
        own dtype, and fitted attributes coming back in X's own type. What of X would fill more than
        half of a GPU's free memory stays where it is, and is moved batch by batch.

    Attributes
    ----------
    coef_ : array of shape (n_classes, n_features), or (1, n_features) for two classes
        Coefficients of the features as given. Their dtype is float32 for X of float32, float16,
        booleans and integers of up to 16 bits, else float64.
    intercept_ : array of shape (n_classes,), or (1,)
        Intercepts. Minus infinity for a class without weight, whose probability is zero.
    classes_ : array of shape (n_classes,)
        Class labels, sorted; ``arange(n_classes)`` where y is a matrix.
    solver_ : str
        The solver used: "sgd", "lbfgs" or "newton"; of two, the last.
    n_iter_ : int
        Epochs run, or iterations made; trial steps that were rejected do not count.
    learning_rate_ : float
        The learning rate used, before the schedule; not a number where there is none.
    loss_curve_ : list of float
        Per epoch, the objective divided by C and the sum of the weights: the mean cross-entropy,
        averaged over the epoch while it trains, and the penalty at its end. With "lbfgs" and
        "newton", both are exact.
    accuracy_curve_ : list of float
        Training accuracy per epoch, likewise averaged.
    best_loss_ : float
        Minimum of `loss_curve_`.
    validation_scores_ : list of float or None
        Accuracy on the validation rows after each epoch, not a number for those of `partial_fit`;
        None without validation data.
    validation_loss_curve_ : list of float or None
        Mean cross-entropy on the validation rows after each epoch.
    best_validation_score_ : float or None
        Maximum of `validation_scores_`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where X has names that are all strings.

    See Also
    --------
    sklearn.linear_model.LogisticRegression : The same objective, by full-batch solvers.
    sklearn.linear_model.SGDClassifier : One-versus-rest linear classifiers by SGD.
    skmax.dask.DaskSoftmaxRegression : The same model on a cluster.
    BatchedGridSearchCV : Candidates and folds trained side by side.

    Notes
    -----
    Rows of weight zero are as good as absent, and so is a class without any other: its probability
    is zero, it takes no part in label smoothing, and where two classes are left, the objective is
    that of two.

    References
    ----------
    A. Zhang, Z. C. Lipton, M. Li and A. J. Smola, Dive into Deep Learning, 2023, chapter 4.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skmax import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegression().fit(X, y)
    >>> model.score(X, y)
    0.97...
    >>> model.predict_proba(X[:1]).round(2)
    array([[0.98, 0.02, 0.  ]])
    """

    coef_: Array  # of the library that X is of, or sparse
    intercept_: Array
    classes_: Array
    solver_: Literal["sgd", "lbfgs", "newton"]
    n_iter_: int
    learning_rate_: float
    loss_curve_: list[float]
    accuracy_curve_: list[float]
    best_loss_: float
    validation_scores_: list[float] | Any  # whoever gave validation data knows it is no None
    validation_loss_curve_: list[float] | Any
    best_validation_score_: float | Any
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]

    # Where to write is nothing that a pipeline would know.
    __metadata_request__decision_function = {"out": UNUSED}  # noqa: RUF012
    __metadata_request__predict = {"out": UNUSED}  # noqa: RUF012
    __metadata_request__predict_proba = {"out": UNUSED}  # noqa: RUF012
    __metadata_request__predict_log_proba = {"out": UNUSED}  # noqa: RUF012

    _parameter_constraints: dict = {  # noqa: RUF012
        "C": [Interval(Real, 0, None, closed="right")],
        "l1_ratio": [Interval(Real, 0, 1, closed="both")],
        "fit_intercept": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "solver": [StrOptions({"auto", "sgd", "lbfgs", "newton"})],
        "preconditioner": [StrOptions({"diagonal"}), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "schedule": [StrOptions(set(SCHEDULES))],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "shuffle": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
            None,
        ],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "backend": [StrOptions({"auto", "numpy", "cupy"})],
    }

    def __init__(
        self,
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        fit_intercept: bool = True,
        class_weight: ClassWeight = None,
        label_smoothing: float = 0.0,
        solver: SolverName = "auto",
        preconditioner: Literal["diagonal"] | None = "diagonal",
        learning_rate: float | Literal["auto"] = "auto",
        schedule: ScheduleName = "cosine",
        max_iter: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        momentum: float = 0.9,
        shuffle: bool = True,
        tol: float = 1e-4,
        n_iter_no_change: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        random_state: RandomState = None,
        verbose: int = 0,
        backend: BackendName = "auto",
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.solver = solver
        self.preconditioner = preconditioner
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.momentum = momentum
        self.shuffle = shuffle
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.backend = backend

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Data,
        y: Data,
        sample_weight: Data | None = None,
        *,
        X_val: Data | None = None,
        y_val: Data | None = None,
        sample_weight_val: Data | None = None,
    ) -> Self:
        """Fit the model to data.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The training data, of any numeric dtype and layout. It may be on disk: what has `shape`,
            `dtype` and slices of rows, such as a `numpy.memmap`, `h5py.Dataset` or `zarr.Array`, is
            read in blocks if it is large (96 MB), and never as a whole.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Labels of any kind; or a matrix of two columns or more whose rows are probabilities,
            one-hot included. A row of probabilities equals n_classes rows with weights
            ``sample_weight[i] * y[i, j]``.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows; a row of weight 2 equals two rows.
        X_val : {array-like, sparse matrix} of shape (n_val, n_features), default=None
            Validation data, scored after each epoch. They stop training only with
            `early_stopping`. In a `Pipeline`, `transform_input=["X_val"]` transforms them like X.
        y_val : array-like of shape (n_val,) or (n_val, n_classes), default=None
            Labels or probabilities of the validation data.
        sample_weight_val : array-like of shape (n_val,), default=None
            Weights of the validation data.

        Returns
        -------
        self : SoftmaxRegression
            The fitted estimator.

        Raises
        ------
        ValueError
            The data are not valid, or training diverged with the learning rate given.
        OSError
            Rows on disk cannot be read.

        Warns
        -----
        ConvergenceWarning
            Training ended at `max_iter`, though neither `tol` was met nor does the schedule end
            there; or the precision of X allows no further step.
        UserWarning
            SGD ended above the objective of a model which knows nothing.

        Examples
        --------
        Labels may be of any kind. Validation data are scored after each epoch:

        >>> from sklearn.datasets import load_digits
        >>> from sklearn.model_selection import train_test_split
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_digits(return_X_y=True)
        >>> X, X_val, y, y_val = train_test_split(X, y, random_state=0)
        >>> model = SoftmaxRegression(solver="sgd", max_iter=10, random_state=0)
        >>> model.fit(X, y, X_val=X_val, y_val=y_val)
        SoftmaxRegression(max_iter=10, random_state=0, solver='sgd')
        >>> len(model.loss_curve_), len(model.validation_scores_)
        (10, 10)
        >>> model.best_validation_score_ > 0.9
        True

        Instead of labels, y may be probabilities, here of somebody 91 % sure of each label:

        >>> import numpy as np
        >>> soft = 0.9 * np.eye(10)[y] + 0.01
        >>> model.fit(X, soft).predict_proba(X).shape
        (1347, 10)
        """
        metadata = {} if sample_weight is None else {"sample_weight": sample_weight}
        arguments = {"X": X, "y": y, "metadata": metadata}
        params = Hyperparameters.of(self)
        X, y, checked = check_X_y(self, X, y, reset=True)
        targets = Targets.read(y)
        weight = check_weights(sample_weight, X)
        if self.warm_start and hasattr(self, "coef_"):
            check_same_model(self, X, targets.classes)
        validation = self._check_validation(
            checked, X_val, y_val, sample_weight_val, targets.classes
        )

        rng = self._new_rng()
        order = np.arange(len(targets.values))
        if self.early_stopping and validation is None:
            order, held_out = self._split(targets, weight, order, rng)
            validation = X, targets, weight, held_out
        problem, seen = _pose(params, X, Share.of(targets, weight, order, self.class_weight))
        learned = {**checked, "classes_": like(y, targets.classes)}
        watched = _pose_validation(problem, validation)
        return self._train(X, params, problem, seen, watched, rng, arguments, learned)

    def _train(
        self,
        X: Any,
        params: Hyperparameters,
        problem: Problem,
        seen: Seen,
        watched: Problem | None,
        rng: np.random.Generator,
        arguments: dict[str, Any],
        learned: dict[str, Any],
    ) -> Self:
        """Minimise; the estimator is as it was until that is done.

        `watched` are the same models on validation rows, `arguments` what callbacks are told, and
        `learned` the fitted attributes that are known; the others come back where X is.
        """
        warm = self.warm_start and hasattr(self, "coef_")
        state = fitted.state_of(self, problem) if warm else State.start(problem)
        method = choose(params, _size(problem), fresh=not warm)
        watch = Watch(problem, [params], [method], watched)

        def attributes(weights: Any = watch.record.weights) -> dict[str, Any]:
            return {
                **learned,
                "solver_": method.solver_of(watch.record.n_iter(0)),
                **fitted.curves(watch),
                **fitted.coefficients(X, problem, weights(0)),
                "_continuation": fitted.Continuation(rng, seen).to_dict(),
            }

        planned = method.max_iter if method.solver == "sgd" else None
        callbacks = Callbacks(self, arguments, attributes, planned)
        try:
            epochs = self._epochs(method, params, problem, state, rng)
            train(epochs, [*watch.consumers, callbacks], watch.reasons)
        except KeyboardInterrupt:  # what the completed epochs have reached is kept
            if watch.record.n_iter(0):
                fitted.publish(self, attributes(watch.weights))
            raise
        fitted.publish(self, attributes(watch.weights))
        callbacks.end()
        n_classes = int(np.sum(~problem.masked))
        solver = method.solver_of(watch.record.n_iter(0))
        warn_unless_good(watch.ending(0), params, solver, n_classes, warm=warm)
        return self

    def _epochs(
        self,
        method: Method,
        params: Hyperparameters,
        problem: Problem,
        state: State,
        rng: np.random.Generator,
    ) -> Epochs:
        """A solver at work, as the method asks for it."""
        return run([method], [params], problem, state, rng, np.array([len(problem.order)]))

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self,
        X: Data,
        y: Data,
        classes: Data | None = None,
        sample_weight: Data | None = None,
    ) -> Self:
        """Go on with one pass over more rows, at a constant learning rate.

        The penalty is that of all rows seen so far: the sum of all their weights scales `C`. The
        means and variances of the preconditioner accumulate over calls; momentum and the random
        state carry on. `learning_rate="auto"` finds a rate for the rows of each call.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Labels or probabilities, as in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All labels that there will be. Needed in the first call, unless y is a matrix.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        self : SoftmaxRegression
            The fitted estimator.

        Raises
        ------
        ValueError
            y has a label that is not among the classes; or `class_weight="balanced"`,
            `early_stopping`, `solver="lbfgs"` or "newton", which need all rows at once.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_digits(return_X_y=True)
        >>> model = SoftmaxRegression(batch_size=10, random_state=0)
        >>> for first in range(0, 1500, 100):
        ...     rows = slice(first, first + 100)
        ...     model = model.partial_fit(X[rows], y[rows], classes=range(10))
        >>> model.score(X[1500:], y[1500:]) > 0.8
        True
        """
        self._check_can_continue()
        params = Hyperparameters.of(self)
        first = not hasattr(self, "coef_")
        X, y, checked = check_X_y(self, X, y, reset=first)
        known = check_announced_classes(self, y, classes)
        targets = Targets.read(y, known)
        weight = check_weights(sample_weight, X)

        # A call that fails leaves the estimator as it was.
        before = fitted.Continuation(self._new_rng())
        if hasattr(self, "_continuation"):
            before = fitted.Continuation.from_dict(self._continuation)
        order = np.arange(len(targets.values))
        share = Share.of(targets, weight, order, self.class_weight, complete=False)
        problem, seen = _pose(params, X, share, before.seen)
        state = State.start(problem) if first else fitted.state_of(self, problem)
        # Nothing decays here, and momentum multiplies the noise.
        solver = sgd([params], problem, np.array([len(order)]), [1])
        solver = replace(solver, schedule=("constant",))
        if self.learning_rate == "auto":
            rate = (1 - self.momentum) * stable_rate(problem, solver)
            solver = replace(solver, learning_rate=rate)
        number = getattr(self, "n_iter_", 0) + 1
        watch = Watch(problem, [params], [Method("sgd", 1)], first_epoch=number)
        orders = solver.orders(problem, before.rng)
        epochs = solver.epochs(problem, before.moving(problem, state), orders)
        train(epochs, watch.consumers, watch.reasons)
        assert watch.record.last is not None
        attributes = {
            **checked,
            "classes_": like(y, known) if first else self.classes_,
            "solver_": "sgd",
            **fitted.coefficients(X, problem, watch.record.weights(0)),
            "_continuation": before.after(problem, watch.record.last, seen).to_dict(),
        }
        fitted.publish(self, {**attributes, **fitted.continued(self, fitted.curves(watch))})
        return self

    def _validate_params(self):
        """Check parameters as scikit-learn does; one at its default needs no check."""
        default = SoftmaxRegression.__init__.__kwdefaults__ or {}
        changed = {
            name: value
            for name, value in vars(self).items()
            if name not in default or value is not default[name]
        }
        validate_parameter_constraints(
            self._parameter_constraints, changed, caller_name=type(self).__name__
        )

    @classmethod
    @cache
    def _get_param_names(cls):
        """As scikit-learn finds them in the signature, which takes 50 us, only once."""
        return super()._get_param_names()

    def _new_rng(self) -> np.random.Generator:
        """NumPy's PCG64, so that every backend sees the same batches."""
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        return np.random.Generator(np.random.PCG64(seed))

    def _check_can_continue(self) -> None:
        if self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True: each call is one epoch on rows "
                "of its own. Use fit, or score the model between calls."
            )
        if self.solver in ("lbfgs", "newton"):
            raise ValueError(
                f"partial_fit does not support solver={self.solver!r}, which needs all rows at "
                "once. Use fit, or solver='sgd'."
            )
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' is not supported for partial_fit, which does not see all "
                "rows. Compute the weights on a large enough sample with "
                "sklearn.utils.compute_class_weight('balanced', classes=classes, y=y) and pass "
                "them as a dictionary."
            )

    def _check_validation(
        self, checked: dict[str, Any], X_val: Any, y_val: Any, weight: Any, classes: np.ndarray
    ) -> Any:
        """The caller's validation data as (X, targets, weights, None for all rows), or None."""
        if X_val is None and y_val is None:
            if weight is not None:
                raise ValueError("sample_weight_val is provided, but X_val was not provided.")
            return None
        if y_val is None:
            raise ValueError(
                "X_val is provided, but y_val was not provided: pass the labels of its rows, too."
            )
        if X_val is None:
            raise ValueError(
                "y_val is provided, but X_val was not provided: pass the rows it belongs to, too."
            )
        X_val, y_val = check_validation_X_y(self, checked, X_val, y_val)
        targets = Targets.read(y_val, classes, name="y_val")
        weight = check_weights(weight, X_val, name="sample_weight_val")
        return X_val, targets, weight, None

    def _split(
        self,
        targets: Targets,
        weight: np.ndarray | None,
        order: np.ndarray,
        rng: np.random.Generator,
    ) -> list[np.ndarray]:
        """Of the rows `order`, those to train on and to validate on, stratified, with weight."""
        labels = targets.classes[targets.labels]
        rows = order if weight is None else order[weight[order] != 0]
        try:
            parts = train_test_split(
                rows,
                test_size=self.validation_fraction,
                stratify=labels[rows],
                random_state=int(rng.integers(np.iinfo(np.int32).max)),
            )
            return [np.sort(part) for part in parts]  # as what is on disk is best read
        except ValueError as error:
            raise ValueError(
                f"early_stopping cannot hold out validation_fraction={self.validation_fraction} of "
                f"{len(rows)} rows, stratified by class: {error}. Pass X_val and y_val instead."
            ) from error

    # Prediction

    @overload
    def decision_function(self, X: HostRows, *, out: None = None) -> NDArray[np.floating]: ...

    @overload
    def decision_function(self, X: Data, *, out: TakesRows | None = None) -> Array: ...

    def decision_function(self, X: Data, *, out: TakesRows | None = None) -> Array:
        """The logits of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows.
        out : array-like of shape (n_samples,) or (n_samples, n_classes), default=None
            Where to write them, block by block, instead of returning a new array: anything that
            rows can be assigned to, such as a `numpy.memmap`, `h5py.Dataset` or `zarr.Array`.

        Returns
        -------
        logits : array of shape (n_samples,) or (n_samples, n_classes)
            Columns are in the order of `classes_`. With two classes, one logit: positive where
            ``classes_[1]`` is the likelier one.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            X is not valid, or has other features than the data that the estimator was fitted to.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression().fit(X, y)
        >>> logits = model.decision_function(X)
        >>> logits.shape
        (150, 3)
        >>> bool((logits.argmax(axis=1) == model.predict(X)).all())
        True
        """
        return self._map_logits(X, "decision_function", out)

    @overload
    def predict(self, X: HostRows, *, out: None = None) -> NDArray[Any]: ...

    @overload
    def predict(self, X: Data, *, out: TakesRows | None = None) -> Array: ...

    def predict(self, X: Data, *, out: TakesRows | None = None) -> Array:
        """The likeliest class of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows.
        out : array-like of shape (n_samples,), default=None
            Where to write them, block by block, instead of returning a new array: anything that
            rows can be assigned to, such as a `numpy.memmap`, `h5py.Dataset` or `zarr.Array`.

        Returns
        -------
        y : array of shape (n_samples,)
            Labels, as in `classes_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            X is not valid, or has other features than the data that the estimator was fitted to.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression().fit(X, y)
        >>> model.predict(X[[0, 50, 100]])
        array([0, 1, 2])
        """
        check_is_fitted(self, "coef_")
        classes = to_host(self.classes_)
        to = None if out is None else WrittenLabels(classes, out)
        index = self._map_logits(X, "predict", to)
        if out is not None:
            return out
        labels = classes[to_host(index)]
        return labels if labels.dtype.kind in "OUST" else like(index, labels)

    @overload
    def predict_proba(self, X: HostRows, *, out: None = None) -> NDArray[np.floating]: ...

    @overload
    def predict_proba(self, X: Data, *, out: TakesRows | None = None) -> Array: ...

    def predict_proba(self, X: Data, *, out: TakesRows | None = None) -> Array:
        """The probabilities of the classes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows.
        out : array-like of shape (n_samples, n_classes), default=None
            Where to write them, block by block, instead of returning a new array: anything that
            rows can be assigned to, such as a `numpy.memmap`, `h5py.Dataset` or `zarr.Array`.

        Returns
        -------
        probabilities : array of shape (n_samples, n_classes)
            Columns are in the order of `classes_`; rows sum to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            X is not valid, or has other features than the data that the estimator was fitted to.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression().fit(X, y)
        >>> model.predict_proba(X[[0, 100]]).round(2)
        array([[0.98, 0.02, 0.  ],
               [0.  , 0.  , 1.  ]])

        Into an array of one's own, which may be a file:

        >>> import numpy as np
        >>> out = np.empty((150, 3), dtype=np.float16)
        >>> model.predict_proba(X, out=out) is out
        True
        """
        return self._map_logits(X, "predict_proba", out)

    @overload
    def predict_log_proba(self, X: HostRows, *, out: None = None) -> NDArray[np.floating]: ...

    @overload
    def predict_log_proba(self, X: Data, *, out: TakesRows | None = None) -> Array: ...

    def predict_log_proba(self, X: Data, *, out: TakesRows | None = None) -> Array:
        """The logarithms of the probabilities of the classes.

        They are not logarithms of probabilities that have been rounded to zero: they are finite
        wherever the logits are.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows.
        out : array-like of shape (n_samples, n_classes), default=None
            Where to write them, block by block, instead of returning a new array: anything that
            rows can be assigned to, such as a `numpy.memmap`, `h5py.Dataset` or `zarr.Array`.

        Returns
        -------
        log_probabilities : array of shape (n_samples, n_classes)
            In nats. Columns are in the order of `classes_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            X is not valid, or has other features than the data that the estimator was fitted to.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression().fit(X, y)
        >>> model.predict_proba(1000 * X[[100]])
        array([[0., 0., 1.]])
        >>> model.predict_log_proba(1000 * X[[100]]) < -1000
        array([[ True,  True, False]])
        """
        return self._map_logits(X, "predict_log_proba", out)

    def _map_logits(self, X: Any, method: str, out: Any = None) -> Any:
        """What a method makes of the logits of rows."""
        check_is_fitted(self, "coef_")
        X = opened(X)
        array = np.empty(0) if isinstance(X, Blocks) else X
        check_same_namespace(array, self, attribute="coef_", method=method)
        unchecked = out is None and is_valid_if_finite(self, X)
        X = X if unchecked else check_X(self, X)
        backend = resolve(X, "auto")
        coef, wide = self.coef_, float_dtype_for(X)
        if wide is np.float32:
            wide = float_dtype_for(coef)
        shift = fitted.anchor_of(self)
        data = source(X, backend, wide).shifted(shift)
        intercept = backend.asarray(fitted.intercept_at(self, shift), data.dtype)
        if not sparse.issparse(coef):
            coef = backend.xp.astype(coef, data.dtype, copy=False)
        if out is not None:
            weights = data, coef, intercept, method
            return write_rows(out, lambda rows: predictions(*weights, rows)[0], data.n_samples)
        values, finite = predictions(data, coef, intercept, method)
        if unchecked and not finite:
            check_X(self, X)
        return values

    def score(self, X: Data, y: Data, sample_weight: Data | None = None) -> float:
        """Accuracy.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            True labels, or their probabilities, of which the largest counts.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows.

        Returns
        -------
        accuracy : float
            The (weighted) share of rows that are classified rightly, from 0 to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            X is not valid, or has other features than the data that the estimator was fitted to.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression().fit(X, y)
        >>> model.score(X, y)
        0.97...
        """
        shape = getattr(y, "shape", None) or np.shape(y)
        if len(shape) == 2 and shape[1] > 1:
            check_is_fitted(self, "coef_")
            classes = to_host(self.classes_)
            y = classes[Targets.read(check_array(y, accept_sparse="csr"), classes).labels]
            return accuracy_score(y, to_host(self.predict(X)), sample_weight=sample_weight)
        return super().score(X, y, sample_weight)

    def optimality_gap(self, X: Data, y: Data, sample_weight: Data | None = None) -> float:
        """How far above its least value the objective is at most, as a share of itself.

        An upper bound of ``(F(W) - F*) / F(W)``, F being the objective divided by C and the sum of
        the weights, and F* the least value that any weights give it. It is proven, by the dual
        problem, but for rounding; the proof is in the documentation of `skmax.duality`. It needs at
        most 100 passes over the data, fewer the closer to the optimum the model is, and is mostly
        within a tenth of the truth; where that is not reached, it is too large, never too small.
        Without a penalty (``C=np.inf``), nothing is known of F* but that it is not less than the
        entropy of the targets: for labels, the bound is 1. It is 1, too, where the model gives the
        probability zero to a class that occurs.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The data that the model was fitted to, or others.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Their labels or probabilities.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        gap : float
            From 0, at the optimum, to 1.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.
        ValueError
            X is not valid, or has other features than the data that the estimator was fitted to.

        References
        ----------
        S. Shalev-Shwartz and T. Zhang, Accelerated proximal stochastic dual coordinate ascent for
        regularized loss minimization, Mathematical Programming 155, 2016.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> SoftmaxRegression(tol=1e-6).fit(X, y).optimality_gap(X, y) <= 1e-6
        True
        >>> model = SoftmaxRegression(solver="sgd", max_iter=3, random_state=0).fit(X, y)
        >>> 0.001 < model.optimality_gap(X, y) < 1
        True
        """
        check_is_fitted(self, "coef_")
        X, y, _ = check_X_y(self, X, y, reset=False)
        targets = Targets.read(y, to_host(self.classes_))
        weight = check_weights(sample_weight, X)
        params, order = Hyperparameters.of(self), np.arange(len(targets.values))
        share = Share.of(targets, weight, order, self.class_weight, complete=False)
        masked = share.masked | np.isneginf(fitted.intercept_at(self, None))
        if (masked & (share.targets.mass(share.weight, order) > 0)).any():
            return 1.0  # a class that occurs is impossible: the objective is infinite
        problem, seen = _pose(params, X, replace(share, masked=masked))
        if seen.moments is None:
            problem = precondition(problem, Moments.of(problem))
        return optimality_gap(problem, fitted.state_of(self, problem))

    def sparsify(self) -> Self:
        """Make `coef_` a sparse matrix.

        With an L1 penalty, most coefficients may be zero; then it takes less memory and time to
        predict. With less than about half of them zero, it takes more. `fit` makes it dense again.

        Returns
        -------
        self : SoftmaxRegression
            The fitted estimator.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.

        See Also
        --------
        densify : The way back.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_digits(return_X_y=True)
        >>> model = SoftmaxRegression(C=0.01, l1_ratio=1).fit(X, y).sparsify()
        >>> 0 < model.coef_.nnz < 320  # of 640
        True
        """
        return super().sparsify()

    def densify(self) -> Self:
        """Make `coef_` an array again.

        Returns
        -------
        self : SoftmaxRegression
            The fitted estimator.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.

        See Also
        --------
        sparsify : The way there.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression(l1_ratio=1).fit(X, y).sparsify()
        >>> model.densify().coef_.shape
        (3, 4)
        """
        return super().densify()

    def to_sklearn(self) -> LogisticRegression:
        """A fitted scikit-learn model with the same predictions.

        Whatever reads `LogisticRegression` (ONNX converters, SHAP, skops) reads it.

        Returns
        -------
        model : sklearn.linear_model.LogisticRegression
            With NumPy attributes. Fitting it anew minimises the same objective, label smoothing
            apart.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The estimator is not fitted.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skmax import SoftmaxRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression().fit(X, y)
        >>> theirs = model.to_sklearn()
        >>> theirs
        LogisticRegression()
        >>> bool((theirs.predict(X) == model.predict(X)).all())
        True
        """
        check_is_fitted(self, "coef_")
        model = LogisticRegression(
            C=self.C,
            l1_ratio=self.l1_ratio,
            fit_intercept=self.fit_intercept,
            class_weight=self.class_weight,
            solver="saga" if self.l1_ratio > 0 else "lbfgs",
        )
        coef = self.coef_ if sparse.issparse(self.coef_) else to_host(self.coef_)
        model.coef_ = coef.copy()
        model.intercept_ = to_host(self.intercept_).copy()
        if fitted.anchor_of(self) is not None:  # float32 could not hold what cancels
            model.coef_ = model.coef_.astype(np.float64)
            model.intercept_ = fitted.intercept_at(self, None)
        model.classes_ = to_host(self.classes_).copy()
        model.n_iter_ = np.array([getattr(self, "n_iter_", 0)], dtype=np.int32)
        model.n_features_in_ = self.coef_.shape[1]
        if hasattr(self, "feature_names_in_"):
            model.feature_names_in_ = self.feature_names_in_
        return model

    def __getstate__(self):
        return fitted.packed(super().__getstate__())

    def __setstate__(self, state):
        super().__setstate__(fitted.unpacked(state))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags


def _pose(
    params: Hyperparameters, X: Any, share: Share, before: Seen | None = None
) -> tuple[Problem, Seen]:
    """What is to be minimised, and what is known of all rows that it is about."""
    backend = resolve(X, params.backend)
    data = source(X, backend, float_dtype_for(X), shuffled=params.shuffle)
    return pose(data, [share], np.zeros(1, dtype=int), [params], before)


def _pose_validation(problem: Problem, validation: Any) -> Problem | None:
    """The plain cross-entropy on validation rows, as seen by the models of a problem."""
    if validation is None:
        return None
    X, targets, weight, order = validation
    data = problem.data
    if order is None:
        order = np.arange(X.shape[0])
        rows = source(X, problem.backend, float_dtype_for(X))
        data = rows.with_(dtype=data.dtype, shift=data.shift)
    return pose_validation(problem, data, targets, weight, [order])


def _size(problem: Problem) -> Size:
    data = problem.data
    n, k = len(problem.order), problem.n_classes
    is_wide = problem.backend.is_wide
    return Size(n, data.n_features, k, data.values_per_row, data.is_on_disk, is_wide)
