"""Conceptual questions in the manner of Cross Validated posters: (name, topics, question, answer, source), written for this repository.

The source is a well-known reference or the name of the textbook topic; `generate.py` appends it to the answer.
"""

CONCEPTS = [
    ("p_value_meaning", ["p-value"],
     "My test of a new button gives a p-value of 0.03. My boss reads this as a 97 percent chance that B is better. Is that right?",
     "No. The p-value says how often data at least this extreme would appear if there were no difference. It is not the probability "
     "that a hypothesis is true. For such a statement you need a prior and Bayes' rule.",
     "ASA statement on p-values, 2016"),
    ("confidence_interval_meaning", ["confidence interval"],
     "I computed a 95 percent confidence interval for our conversion rate. Does the true rate lie in it with probability 95 percent?",
     "Not quite. The 95 percent belongs to the method: over many repeated samples, about 95 of 100 such intervals would cover the true"
     " rate. One computed interval either covers it or not.",
     "Neyman 1937, confidence intervals"),
    ("not_significant_is_not_equal", ["p-value", "power"],
     "Our A/B test is not significant. Can I tell the team that the two versions are equally good?",
     "No. A missing signal is no proof of equality, because the test may simply have been too small. Look at the confidence interval: "
     "if it still holds effects that matter to you, the question is open.",
     "Altman and Bland 1995, absence of evidence"),
    ("peeking_every_day", ["peeking", "sequential testing"],
     "I look at the p-value every morning and stop once it is below 0.05. A colleague says this is cheating. Why?",
     "Each look is another chance for noise to cross the line, so the real false positive rate grows far above 5 percent. Fix the "
     "sample size in advance, or use a sequential method that allows for repeated looks.",
     "Miller 2010, How not to run an A/B test"),
    ("how_long_to_run", ["planning"],
     "How do I decide how long my A/B test must run before I look at the result?",
     "First choose the smallest effect that matters, then compute the sample size for the wanted power, then divide by the daily "
     "traffic. Round up to whole weeks so that every weekday is covered equally.",
     "Kohavi, Tang and Xu 2020"),
    ("two_types_of_error", ["errors"],
     "I always mix up type I and type II errors. What is the difference in an A/B test?",
     "A type I error declares an effect where there is none. A type II error misses an effect that is really there. The significance "
     "level limits the first, and the sample size controls the second once the level is fixed.",
     "Neyman and Pearson 1933"),
    ("power_in_plain_words", ["power"],
     "What does it mean when people say that a test has 80 percent power?",
     "Power is the chance that the test turns out significant when an effect of a given size is real. With 80 percent power, about 4 "
     "of 5 such experiments would detect it. Power always refers to one assumed effect size.",
     "Cohen 1988, power analysis"),
    ("observed_power", ["power"],
     "My test was not significant, so a reviewer asks for the observed power. Is this a useful number?",
     "Hardly. Observed power is computed from the observed effect, so it is only the p-value in other clothes and says nothing new. "
     "Report the confidence interval instead.",
     "Hoenig and Heisey 2001"),
    ("tiny_but_significant", ["effect size"],
     "With two million users even a lift of 0.01 percent is significant. Should we ship everything that is significant?",
     "No. Significance says that such data would be rare if the effect were zero, not that the effect is worth the cost. Decide "
     "beforehand which effect pays for the change, and compare the interval with that value.",
     "textbook topic, practical significance"),
    ("one_sided_test", ["hypothesis testing"],
     "I only care whether B is better. May I use a one-sided test after seeing that B is ahead?",
     "Not after seeing the data. Choosing the side that leads doubles the real error rate. A one-sided test is fair only when the "
     "direction was fixed in advance and a result in the other direction would change nothing.",
     "textbook topic, one-sided tests"),
    ("skewed_revenue_t_test", ["t-test", "skewness"],
     "Revenue per user is very skewed. Am I allowed to use a t-test for the mean?",
     "Often yes. The t-test needs a nearly normal sample mean, not normal data, and with many users the central limit theorem provides"
     " it. The stronger the skew, the more users you need, so check with a simulation or a bootstrap.",
     "textbook topic, central limit theorem"),
    ("welch_or_student", ["t-test"],
     "My two groups have different variances and different sizes. Should I use the Student or the Welch t-test?",
     "Use Welch. It estimates each variance separately and adjusts the degrees of freedom, so it stays correct when variances differ. "
     "When they are equal it loses almost nothing.",
     "Welch 1947"),
    ("outliers_in_revenue", ["outliers"],
     "One customer spent 50 times the average and flips my result. May I remove this customer?",
     "Do not remove single customers after seeing the result. Set a rule beforehand, such as capping spend at a high percentile, and "
     "use it in both groups. Report the result with and without the cap.",
     "textbook topic, winsorizing"),
    ("why_bootstrap", ["bootstrap"],
     "When should I use the bootstrap for an A/B test rather than a formula?",
     "Use it when no simple formula fits your metric, for example a quantile. Resample users with replacement, compute the metric each"
     " time, and read the interval from the results. Always resample the unit that was randomised.",
     "Efron 1979, bootstrap"),
    ("mann_whitney_question", ["nonparametric"],
     "Does the Mann-Whitney test compare medians? Someone used it for revenue per user.",
     "In general it does not. It tests whether a value from one group tends to exceed a value from the other. If the decision depends "
     "on total revenue, you need the means, so a t-test or a bootstrap answers the better question.",
     "Mann and Whitney 1947"),
    ("many_metrics", ["multiple testing"],
     "We track twenty metrics and one is significant at 0.05. Is this a success?",
     "Be careful. With twenty true nulls at this level you expect one false alarm. Name one main metric in advance, correct the others"
     " for multiple testing, and treat surprises as ideas for the next experiment.",
     "textbook topic, multiple comparisons"),
    ("holm_or_bonferroni", ["multiple testing"],
     "Is there any reason to prefer Bonferroni over Holm when I correct five p-values?",
     "Hardly any for testing. Holm steps through the sorted p-values, keeps the same error guarantee and never rejects less. "
     "Bonferroni is simpler and leads directly to matching confidence intervals.",
     "Holm 1979"),
    ("fwer_or_fdr", ["multiple testing", "false discovery rate"],
     "What is the difference between controlling the family-wise error rate and the false discovery rate?",
     "The family-wise rate is the chance of even one false positive. The false discovery rate is the expected share of false positives"
     " among your discoveries. The second is milder and suits screening many ideas.",
     "Benjamini and Hochberg 1995"),
    ("simpson_paradox", ["confounding"],
     "Version B wins on mobile and on desktop, but loses in total. How can this be?",
     "This is Simpson's paradox. The mix of devices differs between the groups, so the totals compare different crowds. In a proper "
     "experiment the mix should agree, so first check the assignment.",
     "Simpson 1951"),
    ("uneven_groups", ["sample ratio mismatch"],
     "I planned a 50/50 split but have 10,500 users in A and 9,500 in B. Can I still trust the test?",
     "Not yet. Such a gap is very unlikely by chance, so users are lost or sorted somewhere. Find the cause, such as a redirect or a "
     "bot filter, before reading any metric. Weighting cannot be trusted to repair it.",
     "Fabijan et al. 2019, sample ratio mismatch"),
    ("purpose_of_aa_test", ["validation"],
     "Why would anybody run an A/A test, where both groups see the same page?",
     "It tests the machinery. Since there is no difference, about 5 percent of such tests should be significant at the 5 percent "
     "level. If many more are, the assignment, the logging or the variance formula is wrong.",
     "Kohavi, Tang and Xu 2020"),
    ("novelty_effect", ["novelty"],
     "Our new menu had a big lift in the first days and then it faded. What happened?",
     "Probably a novelty effect: people try what is new and then return to their habits. Plot the effect by days since a user first "
     "saw the change, and judge by the later days.",
     "Kohavi, Tang and Xu 2020"),
    ("unit_of_randomisation", ["design"],
     "Should I randomise by page view, by session or by user?",
     "Mostly by user. A person who sees both versions gets confused, and effects that build up over visits are lost. Page views can "
     "serve for changes that nobody notices, such as speed in the backend.",
     "Kohavi, Tang and Xu 2020"),
    ("sessions_are_not_independent", ["clustering"],
     "I randomise users but analyse sessions as if they were independent. Is that a problem?",
     "Yes. Sessions of one user resemble each other, so the usual formula makes the standard error too small. Aggregate to one value "
     "per user, or use cluster-robust errors or the delta method.",
     "Deng, Knoblich and Lu 2018"),
    ("clicks_per_view", ["ratio metrics"],
     "My metric is total clicks over total views, and users were randomised. How do I get its variance?",
     "Both the top and the bottom vary from user to user, so the binomial formula is wrong. Use the delta method with the variances "
     "and the covariance per user, or bootstrap whole users.",
     "Deng, Knoblich and Lu 2018"),
    ("comparing_medians", ["quantiles"],
     "How do I compare the median load time of two versions?",
     "Compute the difference of the medians and bootstrap users to get an interval. A t-test does not apply, since it is about means. "
     "With heavy ties or rounding, check the result on a second quantile.",
     "Efron 1979, bootstrap"),
    ("few_conversions", ["small samples"],
     "I have only a handful of conversions in each group. Is the z test for two proportions still fine?",
     "The normal approximation is poor when expected counts are below about five. Use an exact test such as Fisher's, knowing that it "
     "is conservative. And accept that so few events can only reveal huge effects.",
     "Fisher 1935"),
    ("interval_for_small_rates", ["confidence interval"],
     "The usual interval for my conversion rate goes below zero. What should I use?",
     "Use the Wilson score interval. It inverts the score test, never leaves the range from 0 to 1, and covers well even when the rate"
     " or the sample is small.",
     "Wilson 1927"),
    ("zero_events", ["rare events"],
     "There were no failures at all among our users. Is the failure rate then zero?",
     "No. With zero events in n independent trials, the upper 95 percent bound is roughly 3 divided by n. This is called the rule of "
     "three, and it shows what rates the data cannot exclude.",
     "Hanley and Lippman-Hand 1983"),
    ("overlapping_intervals", ["confidence interval"],
     "The confidence intervals of A and B overlap a little. Does this mean that there is no significant difference?",
     "No. Two 95 percent intervals can overlap while the difference is significant. Compute one interval for the difference itself and"
     " check whether it holds zero.",
     "Schenker and Gentleman 2001"),
    ("regression_to_the_mean", ["regression to the mean"],
     "We changed the ten worst pages and nearly all improved the next month. Did the change work?",
     "Not necessarily. Pages picked for a bad month tend to look better later without any help, which is regression to the mean. "
     "Randomise which bad pages get the change and compare.",
     "Galton 1886, regression to the mean"),
    ("winners_curse", ["effect size"],
     "Why do launched features deliver less than their A/B tests promised?",
     "Launched features were selected because they looked good, so their estimates are partly luck. This is the winner's curse, and "
     "low power makes it worse. Shrink the estimates or run a fresh confirmation test.",
     "Gelman and Carlin 2014"),
    ("normality_test_first", ["assumptions"],
     "Should I run a normality test before each t-test and switch to ranks when it fails?",
     "Better not. With big samples such tests reject trivial deviations, and with small samples they miss large ones. Switching also "
     "changes the question. Choose the analysis from the metric, before the data arrive.",
     "textbook topic, assumptions of the t-test"),
    ("paired_data", ["paired tests"],
     "Each store was measured with the old and the new layout. Should I use a paired or an unpaired test?",
     "Use the paired test. It works on the difference within each store, so stable differences between stores drop out and the error "
     "shrinks. Randomise which layout comes first, or time may bias the result.",
     "Student 1908"),
    ("same_users_yes_no", ["paired tests"],
     "The same people answered a yes or no question before and after a change. Which test fits?",
     "McNemar's test. It looks only at the people who changed their answer and asks whether one direction is more common. A usual "
     "chi-square test would wrongly treat the two answers as independent.",
     "McNemar 1947"),
    ("bayes_or_frequentist", ["Bayesian"],
     "Would a Bayesian A/B test free me from all the trouble with p-values?",
     "It answers another question: how probable each effect is, given data and prior. That is easier to explain. But bad assignment, "
     "biased metrics and careless stopping rules still hurt, and the prior must be defended.",
     "textbook topic, Bayesian inference"),
    ("choosing_a_prior", ["Bayesian"],
     "How do I choose a prior for the conversion rate in a Bayesian A/B test?",
     "Take past experiments: set the prior so that it covers the rates and lifts you have really seen. A Beta prior acts like extra "
     "visitors. Then try a second prior and see whether the decision changes.",
     "textbook topic, Beta-binomial model"),
    ("credible_interval", ["Bayesian"],
     "How does a credible interval differ from a confidence interval?",
     "A 95 percent credible interval holds the parameter with probability 95 percent, given the model and the prior. A confidence "
     "interval instead promises coverage over repeated samples. With much data the two are often close.",
     "textbook topic, Bayesian inference"),
    ("unequal_split", ["design"],
     "For safety we want to show the new version to 10 percent of users only. What do we lose?",
     "You lose power. The variance of the difference is governed by the smaller group, so for a fixed number of users an equal split "
     "is best when the variances agree. A small share is sensible as a first safety step.",
     "textbook topic, allocation ratio"),
    ("post_stratification", ["variance reduction"],
     "Can I still use the country of each user to sharpen my result after the test is over?",
     "Yes, if the country was known before the treatment. Estimate the effect within each country and average with the country shares."
     " This is post-stratification, and it removes variation between countries.",
     "Miratrix, Sekhon and Yu 2013"),
    ("log_of_revenue", ["transformations"],
     "If I take the logarithm of revenue, the test becomes significant. Can I report that?",
     "Only if the log scale was planned and answers your question. Means of logs describe ratios of typical spend, not total revenue, "
     "and zeros need special care. The two analyses can even point in opposite directions.",
     "textbook topic, log transformation"),
    ("weekend_effect", ["planning"],
     "My test ran from Monday to Thursday. Does it matter that no weekend was included?",
     "The comparison is fair for those days, because both groups saw the same days. But weekend visitors may react differently, so the"
     " result may not carry over. Run at least one full week.",
     "textbook topic, external validity"),
    ("guardrail_metrics", ["metrics"],
     "What is a guardrail metric, and why do we need one besides the main metric?",
     "A guardrail is a metric that must not get worse, such as load time or refunds. It protects against wins that are paid for "
     "elsewhere. Test it against a margin of harm that you fixed in advance.",
     "Kohavi, Tang and Xu 2020"),
    ("users_who_never_saw_it", ["intention to treat"],
     "Half of the users in group B never opened the page with the change. May I drop them?",
     "Only if you can drop the matching users in group A by the same rule, and the rule cannot depend on the treatment. Otherwise keep"
     " everybody as assigned; the effect is diluted but fair.",
     "textbook topic, intention to treat"),
    ("hunting_subgroups", ["multiple testing", "subgroups"],
     "The test failed overall, but it is significant for tablet users in spring. Should we ship to them?",
     "I would not. Search enough subgroups and one will look good by chance. Test whether the effect really differs between groups, "
     "correct for the number of looks, and confirm it with new data.",
     "textbook topic, subgroup analysis"),
    ("no_randomisation", ["causality"],
     "Users of our new feature buy twice as much as others. Can I say that the feature causes this?",
     "No. People chose the feature themselves, and eager customers may do both. Without randomisation such a difference mixes the "
     "effect with the kind of person. Run an experiment, or adjust for confounders with great caution.",
     "Rubin 1974"),
    ("deviation_or_error", ["standard error"],
     "What is the difference between the standard deviation and the standard error?",
     "The standard deviation describes how much single users differ. The standard error describes how much the mean would differ from "
     "sample to sample. The second shrinks with the square root of the sample size, while the first does not.",
     "Altman and Bland 2005"),
    ("several_variants", ["multiple testing", "design"],
     "I want to test four new headlines against the old one. What must I watch out for?",
     "Each headline gets less traffic, so plan for a larger test. Comparing several with one control also raises the false alarm rate;"
     " Dunnett's method corrects exactly this. And expect the best one to look too good.",
     "Dunnett 1955"),
    ("double_the_data", ["standard error"],
     "If I double the number of users, is my confidence interval half as wide?",
     "No. The width falls with the square root of the sample size, so double the users gives about 0.71 of the width. For half the "
     "width you need four times the users.",
     "textbook topic, standard error"),
    ("users_drop_out", ["missing data"],
     "Many users left before the final survey, more of them in group B. Can I analyse those who stayed?",
     "That is risky. If the treatment changes who stays, the two groups are no longer comparable. Report the dropout in both groups, "
     "compare everybody on a logged metric, and compute bounds for the missing answers.",
     "Lee 2009, attrition bounds"),
]
