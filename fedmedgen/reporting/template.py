"""The report's page as a Jinja template; everything it prints comes escaped from `report.content`."""

MACROS = """
{% macro table(head, rows, mine="", texts=1) %}
<div class="scroll"><table><thead><tr>
{% for name in head %}<th{% if loop.index > texts %} class="n"{% endif %}>{{ name }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in rows %}<tr{% if mine and row[0].startswith(mine) %} class="mine"{% endif %}>
{% for cell in row %}<td{% if loop.index > texts %} class="n"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro figure(plot, caption) %}
<figure class="card">{{ plot }}<figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}
{% macro shots(shots) %}
<div class="shots">
{% for shot in shots %}{{ shot }}{% else %}<span class="soft">none in the set</span>{% endfor %}
</div>
{% endmacro %}
{% macro words(names) %}
<ul class="words">{% for name in names %}<li>{{ meanings[name] }}</li>{% endfor %}</ul>
{% endmacro %}
"""

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer"><title>{{ study }}: federated study report</title>
<style>{{ css }}</style></head><body><main>
<header><p class="over">Federated generative study</p>
<h1>{{ study }}<span class="pill {{ 'good' if finished else 'bad' }}">{{ status }}</span></h1>
<p class="lead">{{ verdict }}</p>
{% if note %}<p class="note">{{ note }}</p>{% endif %}
</header>
<div class="tiles">
{% for tile in tiles %}<div><b>{{ tile.value }}</b><span>{{ tile.words }}</span></div>{% endfor %}
</div>
"""

SAMPLES = """
<section id="samples"><h2>What it draws</h2>
{% if samples %}
<p>The first cases of the synthetic set in each class, not chosen ones
{%- if has_phantoms %}, beside phantoms: radiographs drawn by a program, from no patient{% endif %}.
No real patient's image is on this page.</p>
{% if mask_key %}<input type="checkbox" id="masks" checked><label for="masks"> masks</label>
<span class="key soft">
{% for name, colour in mask_key %}<i style="background:{{ colour }}"></i>{{ name }}{% endfor %}</span>
{% endif %}
<div class="grid"{% if not has_phantoms %} style="grid-template-columns:1fr"{% endif %}>
{% for row in samples %}
<div><h3>{{ row.name }} <span class="soft">synthetic</span></h3>
{{ shots(row.synthetic) }}</div>
{% if has_phantoms %}
<div><h3>{{ row.stand_in or row.name }} <span class="soft">phantom</span></h3>
{{ shots(row.phantoms) }}</div>
{% endif %}
{% endfor %}</div>
{% else %}<p>This run has no synthetic set.</p>{% endif %}
</section>
"""

CLAIM = """
<section id="privacy"><h2>What is promised to each patient</h2>
<p>{{ meanings.epsilon }}</p>
<div class="card"><dl>{% for name, text in claim %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl></div>
{% if sites.rows %}<h3>Sites</h3>{{ table(sites.head, sites.rows, texts=2) }}{% endif %}
</section>
"""

WORTH = """
<section id="worth"><h2>What the synthetic set is worth</h2>
{{ words(["tstr", "prior", "best_site"]) }}
{% for task in (classification, segmentation) %}
<h3>{{ task.title }}</h3>
{% if task.skipped %}<p>Not measured: {{ task.skipped }}.</p>{% else %}
<p>{{ task.reading }}</p>
<div class="pair">
{% if task.plot %}{{ figure(task.plot, task.plot_words) }}{% endif %}
{% if task.class_plot %}{{ figure(task.class_plot, task.class_plot_words) }}{% endif %}
</div>
{{ table(task.head, task.rows, mine="Synthetic") }}
{% if task.class_rows %}{{ table(task.class_head, task.class_rows) }}{% endif %}
{% if task.site_rows %}
<details><summary>Each site alone</summary>{{ table(task.site_head, task.site_rows) }}</details>
{% endif %}
{{ words(task.meanings) }}{% endif %}
{% endfor %}
{% if not mask_shapes.skipped %}
<h3>Shapes of the masks</h3>
{% for sentence in mask_shapes.sentences %}<p>{{ sentence }}</p>{% endfor %}
<div class="pair">{% for plot, caption in mask_shapes.plots %}{{ figure(plot, caption) }}{% endfor %}</div>
{% endif %}
<h3>Likeness to real images</h3>
{% if fidelity.skipped %}<p>Not measured: {{ fidelity.skipped }}.</p>{% else %}
<p>{{ fidelity.reading }}</p>
<div class="pair">{% for plot, caption in fidelity.plots %}{{ figure(plot, caption) }}{% endfor %}</div>
{{ table(fidelity.head, fidelity.rows, mine="Synthetic") }}
{{ words(["fd", "coverage"]) }}{% endif %}
</section>
"""

LEAKS = """
<section id="leaks"><h2>What the generator gives away</h2>
{% if audits.skipped %}<p>{{ audits.skipped }}</p>{% else %}
{{ words(["canaries", "membership", "copies"]) }}
{{ table(audits.head, audits.rows, texts=2) }}
{% for site in audits.sites %}<details open><summary>{{ site.name }}, in words</summary>
<ul class="words">{% for sentence in site.words %}<li>{{ sentence }}</li>{% endfor %}</ul></details>{% endfor %}
{% endif %}
<h3>May the set leave?</h3>
<p>{{ release.words }}</p>
{% if release.reasons %}<ul class="words">{% for reason in release.reasons %}<li>{{ reason }}</li>{% endfor %}</ul>
{% endif %}
</section>
"""

COURSE = """
<section id="course"><h2>How the run went</h2>
<div class="pair">{% for plot, caption in training.plots %}{{ figure(plot, caption) }}{% endfor %}</div>
{% if training.note %}<p class="note">{{ training.note }}</p>{% endif %}
<h3>Lost sites</h3>
{% if training.lost %}{{ table(["Site", "Last seen"], training.lost, texts=2) }}
{% else %}<p>None: every site stayed to the end.</p>{% endif %}
<h3>Rejected replies</h3>
{% if replies %}{{ table(["Stage", "Round", "Site", "What happened", "Why"], replies, texts=5) }}
{% else %}<p>None: every reply could be used.</p>{% endif %}
<h3>Files set aside</h3>
{% if files.rows %}<p>{{ files.words }}</p>
{{ table(["Why", "Files", "For example"], files.rows, texts=3) }}
{% else %}<p>None: every file could be used.</p>{% endif %}
{% if data.plot %}<h3>Data per site</h3><div class="pair">{{ figure(data.plot, data.words) }}</div>
{{ table(data.head, data.rows) }}{% endif %}
</section>
"""

COST = """
<section id="cost"><h2>Traffic and time</h2>
<div class="pair">{% for plot, caption in cost.plots %}{{ figure(plot, caption) }}{% endfor %}</div>
<div class="card"><dl>{% for name, text in cost.facts %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl></div>
<details><summary>All settings of the run</summary><pre>{{ settings }}</pre></details>
</section>
<footer class="soft">Drawn by fedmedgen {{ version }} from the run folder alone.
This page loads nothing from anywhere.</footer>
</main></body></html>
"""

TEMPLATE = HEAD.replace("<!doctype", MACROS.strip() + "<!doctype") + SAMPLES + CLAIM + WORTH + LEAKS + COURSE + COST
