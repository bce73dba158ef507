"""The certificate's page as a Jinja template, in the report's look."""

from fedmedgen.reporting.style import CSS as REPORT

CSS = (
    REPORT
    + """
.asks { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem; }
.asks h2 { margin-top: 0; } .asks dl { grid-template-columns: 1fr; } .asks dt { padding: .6rem 0 0; color: var(--ink); }
.asks dd { border-top: 0; padding-top: .1rem; color: var(--soft); font-size: .92rem; overflow-wrap: anywhere; }
.asks p, td p { margin: 0; } .shots { grid-template-columns: repeat(6, 1fr); }
.answers td:first-child { white-space: normal; min-width: 8rem; font-weight: 600; }
.answers td:last-child { min-width: 16rem; } .mono { font-family: ui-monospace, monospace; font-size: .78rem;
  overflow-wrap: anywhere; }
.check::before { content: "✓"; color: var(--good); font-weight: 700; margin-right: .6rem; }
ul.checks { list-style: none; padding: 0; } ul.checks li { padding: .2rem 0; }
svg.tile .mask { fill-opacity: .08; }
"""
)

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer"><title>Certificate: {{ made.study }}</title>
<style>{{ css }}</style></head><body><main>
<header><p class="over">Certificate of release</p>
<h1>{{ title }}<span class="pill good">granted</span></h1>
<p class="lead">{{ lead }}</p>
<p class="note">Made on {{ made.at[:10] }} for the run {{ made.run }} by fedmedgen {{ made.versions.fedmedgen }}.
This page repeats certificate.json, which is signed.</p></header>
<div class="tiles">
{% for value, words in tiles %}<div><b>{{ value }}</b><span>{{ words }}</span></div>{% endfor %}
</div>
<div class="asks">
<section class="card"><h2>For the data protection officer</h2><dl>
{% for ask, answer in officer %}<dt>{{ ask }}</dt><dd>{{ answer }}</dd>{% endfor %}
</dl></section>
<section class="card"><h2>For the radiologist</h2><dl>
{% for ask, answer in radiologist %}<dt>{{ ask }}</dt><dd>{{ answer }}</dd>{% endfor %}
</dl>
{% for name, shots in samples %}<h3>{{ name }} <span class="soft">synthetic</span></h3>
<div class="shots">{% for shot in shots %}{{ shot }}{% endfor %}</div>{% endfor %}
{% if key %}<p class="key soft">Outlines:
{% for name, colour in key %}<i style="background:{{ colour }}"></i>{{ name }}{% endfor %}</p>{% endif %}
</section></div>
<h2>Every number, and what it means</h2>
{% for name, rows in tables %}<h3>{{ name }}</h3>
<div class="scroll"><table class="answers"><thead><tr><th>Number</th><th class="n">Value</th><th>Asked for</th>
<th>In one sentence</th></tr></thead><tbody>
{% for row in rows %}<tr><td>{{ row[0] }}</td><td class="n">{{ row[1] }}</td><td>{{ row[2] or "–" }}</td>
<td>{{ row[3] }}</td></tr>{% endfor %}
</tbody></table></div>{% endfor %}
<h2>Sites</h2>
<div class="scroll"><table><thead><tr><th>Site</th><th class="n">Patients declared</th><th class="n">ε, this run</th>
<th class="n">ε, computed anew</th><th>ε, all runs so far</th><th>Ledger</th></tr></thead><tbody>
{% for row in sites %}<tr><td>{{ row[0] }}</td>{% for cell in row[1:4] %}<td class="n">{{ cell }}</td>{% endfor %}
<td>{{ row[4] }}</td><td>{{ row[5] }}</td></tr>{% endfor %}
</tbody></table></div>
{% for site, words in audits %}<h3>What {{ site }} found</h3>
<ul class="words">{% for word in words %}<li>{{ word }}</li>{% endfor %}</ul>{% endfor %}
<h2>What the gate asked</h2>
<ul class="checks">{% for check in made.checks %}<li class="check">{{ check.question }}</li>{% endfor %}</ul>
<details><summary>Mechanism, hashes and versions</summary><div class="card"><dl>
<dt>Mechanism</dt><dd>{{ made.claim.mechanism }}</dd><dt>Neighbours</dt><dd>{{ made.claim.neighbouring }}</dd>
<dt>Accountant</dt><dd>{{ made.claim.accountant }}</dd><dt>Trusted</dt><dd>{{ made.claim.trusted }}</dd>
<dt>Signed by</dt><dd class="mono">{{ made.key.algorithm }} {{ made.key.fingerprint }}</dd>
{% for name, value in made.hashes.items() %}<dt>{{ name }}</dt><dd class="mono">{{ value or "–" }}</dd>{% endfor %}
{% for name, value in made.versions.items() %}<dt>{{ name }}</dt><dd>{{ value or "–" }}</dd>{% endfor %}
</dl></div></details>
<footer class="soft">certificate.json lists the hash of every file beside it, this page's too; certificate.sig is its
Ed25519 signature. This page loads nothing from anywhere.</footer>
</main></body></html>
"""
